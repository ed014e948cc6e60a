"""FLUX.1 (dev and schnell; Black Forest Labs, https://github.com/black-forest-labs/flux) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 8), T text tokens, D their width,
P width of the pooled text embedding. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.flux_original import NAMES
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import CLIP_VOCABULARY, JOINT_ATTENTION, T5_VOCABULARY, Layout

if TYPE_CHECKING:
    from dgpo_diffusers.flux_options import FluxOptions

__all__ = ["FluxBackbone"]

DEV, SCHNELL = 512, 256
"""T5 tokens that the two were trained with."""


class FluxBackbone(DiffusersBackbone):
    """diffusers' FLUX.1 transformer, autoencoder and text encoders; trains a peft LoRA, or the whole transformer.

    Latents are images [C, h, w] everywhere but in the transformer, which is given squares of 2 x 2 as tokens.

    Computed in bfloat16, or under such an autocast, the transformer rounds the times that it is given to eight bits, as
    in its first publication: 0.901 and 0.903 are one to it. States are at their exact times, in rollouts and training
    alike, and in float32 nothing is rounded.
    """

    options: FluxOptions
    layout = Layout(
        backbone="flux",
        family="FLUX.1",
        pipeline="FluxPipeline",
        models={
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
        },
        vocabularies={"tokenizer": CLIP_VOCABULARY, "tokenizer_2": T5_VOCABULARY},
        alike=r"Flux(Img2Img|Inpaint)Pipeline",
        numbers={"transformer": ("in_channels",), "vae": ("scaling_factor", "shift_factor")},
        grid="even",
        # The attention of both kinds of blocks; single ones have queries, keys and values alone. Their `proj_out` is no
        # attention's and, as an ending, also the layer that gives the velocity.
        lora_targets=JOINT_ATTENTION,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    @property
    def text_length(self) -> int:
        """T5 tokens of a prompt, padding included."""
        return self.options.text_length or (DEV if self.network.config.guidance_embeds else SCHNELL)

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for a transformer and an autoencoder of different latents, and for a guidance that the
        transformer does not take."""
        config, usual = pipeline.transformer.config, type(self.options).model_fields["embedded_guidance"].default
        if config.in_channels != 4 * pipeline.vae.config.latent_channels:
            raise UserError(
                f"backbone.checkpoint: {directory}/transformer takes {config.in_channels} channels, which must be four "
                f"times the autoencoder's {pipeline.vae.config.latent_channels}: it is not text-to-image"
            )
        if not config.guidance_embeds and self.options.embedded_guidance != usual:
            raise UserError(
                f"backbone.options.embedded_guidance: {self.options.embedded_guidance:g} is set, but {directory} takes "
                "none (its guidance_embeds is false, as FLUX.1-schnell's): leave the option out"
            )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"prompt_embeds" [B, T, D], "pooled" [B, P]}, as FluxPipeline makes them: T5's tokens, padding among them and
        nothing masked, and what CLIP makes of the whole prompt."""
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.text_length,
        )
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """T5's tokens, and CLIP's embedding."""
        config = self.network.config
        return {
            "prompt_embeds": (self.text_length, config.joint_attention_dim),
            "pooled": (config.pooled_projection_dim,),
        }

    def readers(self) -> Sequence[tuple[Any, int]]:
        """CLIP's tokenizer and T5's."""
        p = self.pipeline
        return [(p.tokenizer, p.tokenizer_max_length), (p.tokenizer_2, self.text_length)]

    def sides(self) -> tuple[range, range]:
        """Multiples of twice the autoencoder's factor: 16 pixels are one token."""
        possible = multiples(2 * self.pipeline.vae_scale_factor)
        return possible, possible

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """FLUX.1 was trained on v = noise - x0; the transformer is given sigma and the guidance itself, and multiplies
        both by 1000. x [B, C, h, w]."""
        batch, channels, height, width = x.shape
        h, w = height // 2, width // 2
        text = conditioning.tensors["prompt_embeds"]
        places = torch.zeros(h, w, 3, device=x.device)
        places[..., 1] += torch.arange(h, device=x.device)[:, None]
        places[..., 2] += torch.arange(w, device=x.device)
        out: Tensor = network(
            # The four pixels of a token are the inner of its features, channels the outer.
            hidden_states=x.reshape(batch, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            encoder_hidden_states=text,
            pooled_projections=conditioning.tensors["pooled"],
            timestep=time,
            guidance=torch.full_like(time, self.options.embedded_guidance) if network.config.guidance_embeds else None,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return out.view(batch, h, w, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
