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
from dgpo_diffusers.families.flux.names import NAMES
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import CLIP_VOCABULARY, JOINT_ATTENTION, T5_VOCABULARY, Layout
from dgpo_diffusers.packing import packed, unpacked

if TYPE_CHECKING:
    from dgpo_diffusers.families.flux.options import FluxOptions

__all__ = ["FluxBackbone"]

DEV, SCHNELL = 512, 256
"""Number of T5 tokens that FLUX.1-dev and FLUX.1-schnell were trained with."""


class FluxBackbone(DiffusersBackbone):
    """diffusers' FLUX.1 transformer, autoencoder and text encoders; trains a peft LoRA, or the whole transformer.

    Latents have shape [C, h, w] outside the transformer, which receives patches of 2x2 latents as tokens.

    In bfloat16, or under bfloat16 autocast, the transformer rounds its timestep input to eight bits, as in the original
    implementation: it cannot distinguish 0.901 from 0.903. The latents themselves are at their exact times, in rollouts
    and in training, and float32 does not round.
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
        # Attention of both kinds of blocks; single blocks have only queries, keys and values. `proj_out` is not an
        # attention projection and, as a suffix, would also match the output layer.
        lora_targets=JOINT_ATTENTION,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    @property
    def text_length(self) -> int:
        """Number of T5 tokens per prompt, including padding."""
        return self.options.text_length or (DEV if self.network.config.guidance_embeds else SCHNELL)

    @property
    def supports_guidance(self) -> bool:
        """False for FLUX.1-schnell, which was distilled to few steps without guidance: its times are not shifted. Other
        checkpoints without embedded guidance, such as de-distilled ones, are guided by a second pass."""
        dynamic = self.pipeline.scheduler.config.use_dynamic_shifting
        return bool(self.network.config.guidance_embeds or dynamic)

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if transformer and autoencoder do not match, or for embedded guidance without effect."""
        config, usual = pipeline.transformer.config, type(self.options).model_fields["embedded_guidance"].default
        if config.in_channels != 4 * pipeline.vae.config.latent_channels:
            raise UserError(
                f"backbone.checkpoint: {directory}/transformer has {config.in_channels} input channels, which must be "
                f"four times the autoencoder's {pipeline.vae.config.latent_channels}: it is not a text-to-image model"
            )
        if not config.guidance_embeds and self.options.embedded_guidance != usual:
            raise UserError(
                f"backbone.options.embedded_guidance: {self.options.embedded_guidance:g} is set, but {directory} does "
                "not support it (guidance_embeds is false, as in FLUX.1-schnell); remove the option"
            )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D], "pooled" [B, P]} as FluxPipeline does: T5 token embeddings, including
        padding without a mask, and the pooled CLIP embedding."""
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.text_length,
        )
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shapes of T5's token embeddings and CLIP's pooled embedding."""
        config = self.network.config
        return {
            "prompt_embeds": (self.text_length, config.joint_attention_dim),
            "pooled": (config.pooled_projection_dim,),
        }

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the tokenizers of CLIP and T5 with their maximum lengths."""
        p = self.pipeline
        return [(p.tokenizer, p.tokenizer_max_length), (p.tokenizer_2, self.text_length)]

    def sides(self) -> tuple[range, range]:
        """Return multiples of twice the autoencoder's factor: one token covers 16 pixels."""
        possible = multiples(2 * self.pipeline.vae_scale_factor)
        return possible, possible

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. The transformer multiplies sigma and the guidance by 1000."""
        height, width = x.shape[2:]
        h, w = height // 2, width // 2
        text = conditioning.tensors["prompt_embeds"]
        places = torch.zeros(h, w, 3, device=x.device)
        places[..., 1] += torch.arange(h, device=x.device)[:, None]
        places[..., 2] += torch.arange(w, device=x.device)
        out: Tensor = network(
            hidden_states=packed(x),
            encoder_hidden_states=text,
            pooled_projections=conditioning.tensors["pooled"],
            timestep=time,
            guidance=torch.full_like(time, self.options.embedded_guidance) if network.config.guidance_embeds else None,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)
