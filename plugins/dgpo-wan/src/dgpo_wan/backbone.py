"""Wan 2.1 and 2.2 text-to-video (Wan Team, arXiv 2503.20314) as a backbone.

Shape letters: B samples, C latent channels, F frames (f of latents: 1 + (F - 1) / 4), H W height and width of frames
(h w of latents: pixels / vae factor), T text tokens, D their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import T5_VOCABULARY, Layout
from dgpo_wan.checks import check_wan, latent_frames, text_to_video
from dgpo_wan.experts import expert_times, has_experts, trained_transformer
from dgpo_wan.original import NAMES

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_wan.options import WanOptions

__all__ = ["WanBackbone"]

PIPELINE_STEP = 16
"""WanPipeline requires sides that are multiples of this, for every checkpoint."""


class WanBackbone(DiffusersBackbone):
    """diffusers' Wan transformer, autoencoder and text encoder; trains a peft LoRA, or the whole transformer.

    Of the two experts of Wan 2.2, one is trained (`options.expert`). The other is frozen and predicts its part of every
    rollout, as in WanPipeline; training both would take twice the memory. Each time belongs to one expert: with
    `timesteps.t_min` at the boundary or above, the default expert (high noise: content and motion) is trained at every
    time.
    """

    media = "video"
    fps = 16.0
    options: WanOptions
    layout = Layout(
        backbone="wan",
        family="Wan 2.1 and 2.2 text-to-video; image-to-video is wan-i2v, VACE and Animate are other pipelines",
        pipeline="WanPipeline",
        models={
            "transformer": "WanTransformer3DModel",
            "transformer_2": "WanTransformer3DModel",
            "vae": "AutoencoderKLWan",
            "text_encoder": "UMT5EncoderModel",
        },
        vocabularies={"tokenizer": T5_VOCABULARY},
        # Published checkpoints contain only `shared.weight`, but their configuration does not tie the two weights; some
        # versions of transformers 5 then do not initialize this one.
        tied={"text_encoder": ["encoder.embed_tokens.weight"]},
        alike="WanVideoToVideoPipeline",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Return all components, with a second transformer if the pipeline has a boundary (Wan 2.2 A14B)."""
        both = has_experts(index)
        return [name for name in self.layout.models if both or name != "transformer_2"]

    def trained_options(self) -> frozenset[str]:
        """Return the expert, if there are two."""
        return frozenset({"expert"} if self.others else ())

    def trained(self, components_to_load: Collection[str]) -> str:
        """Return the transformer of `options.expert` if there are two."""
        return trained_transformer(components_to_load, self.options.expert)

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Return the boundary between the transformers, and whether timesteps are per patch (Wan 2.2 5B)."""
        return {"boundary_ratio": index.number("boundary_ratio"), "expand_timesteps": index.flag("expand_timesteps")}

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that are inconsistent or not for text-to-video."""
        check_wan(pipeline, directory, self.layout.backbone, text_to_video)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds": [B, T, D]} with T = `text_length`, computed by WanPipeline.

        The tokens of a prompt attend only to each other; the embeddings are padded with zeros.
        """
        prompt_embeds, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.text_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": prompt_embeds})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of one prompt's UMT5 embeddings."""
        return {"prompt_embeds": (self.options.text_length, self.network.config.text_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the UMT5 tokenizer with its maximum length."""
        return [(self.pipeline.tokenizer, self.options.text_length)]

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Return the prompts with more than `text_length` tokens after WanPipeline's text cleaning."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return super().truncated_prompts([replace(prompt, text=prompt_clean(prompt.text)) for prompt in prompts])

    def sides(self) -> tuple[range, range]:
        """Return the valid heights and widths in pixels.

        They are multiples of 16 and of the autoencoder's factor times the patch size, up to the limit of the position
        embeddings.
        """
        config, factor = self.network.config, self.pipeline.vae_scale_factor_spatial
        steps = [factor * patch for patch in config.patch_size[1:]]
        height, width = (multiples(math.lcm(step, PIPELINE_STEP), step * config.rope_max_seq_len) for step in steps)
        return height, width

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return (C, f, h, w) for a video of `frames` frames. Raises UserError if the positions do not suffice."""
        factor = self.pipeline.vae_scale_factor_spatial
        frames = latent_frames(self.options.frames, self.network.config.rope_max_seq_len)
        return self.vae.config.z_dim, frames, height // factor, width // factor

    def belonging(self, sigma: Tensor) -> tuple[Tensor, str]:
        """Return which times the trained expert predicts, and advice."""
        return expert_times(sigma, self.pipeline.config.boundary_ratio, self.options.expert)

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of x [B, C, f, h, w]. Wan predicts v = noise - x0 at timestep 1000 * sigma."""
        out: Tensor = network(**self.inputs(x, time, conditioning), return_dict=False)[0]
        return out

    def inputs(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Arguments of the transformer: x [B, C, f, h, w] at timestep 1000 * sigma. Wan 2.2 5B has a time for every
        patch (`expand_timesteps`); in text-to-video they are all the same."""
        embeds = conditioning.tensors["prompt_embeds"]
        return {"hidden_states": x, "timestep": 1000 * time, "encoder_hidden_states": embeds}
