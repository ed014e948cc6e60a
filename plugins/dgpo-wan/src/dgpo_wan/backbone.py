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

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import T5_VOCABULARY, Layout
from dgpo_wan.checks import check_wan, text_to_video
from dgpo_wan.options import COMPRESSION
from dgpo_wan.original import NAMES

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_wan.options import WanOptions

__all__ = ["WanBackbone"]

PIPELINE_STEP = 16
"""WanPipeline takes sides that are multiples of this, whatever the checkpoint."""


class WanBackbone(DiffusersBackbone):
    """diffusers' Wan transformer, autoencoder and text encoder; trains a peft LoRA, or the whole transformer.

    Of Wan 2.2's two experts one is trained (`options.expert`), the other is frozen and draws its part of the way, as in
    WanPipeline: both would take twice the memory. A time belongs to one of them alone: with `timesteps.t_min` at the
    boundary or above, the default one, of high noise, is trained at every step and settles content and motion.
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
        # Published as `shared.weight` alone, with a configuration that says the two are not tied; some versions of
        # transformers 5 then leave the first one blank.
        tied={"text_encoder": ["encoder.embed_tokens.weight"]},
        alike="WanVideoToVideoPipeline",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Two transformers if the pipeline changes from one to another at a boundary (Wan 2.2 A14B)."""
        boundary = index.number("boundary_ratio") is not None
        if boundary and index.part("transformer_2") is None:
            raise UserError(
                f"backbone.checkpoint: {index.path} has a boundary_ratio, but no transformer_2 to change to"
            )
        return [name for name in self.layout.models if boundary or name != "transformer_2"]

    def trained(self, components_to_load: Collection[str]) -> str:
        """`options.expert`, if there are two."""
        return (
            "transformer_2" if "transformer_2" in components_to_load and self.options.expert == "low" else "transformer"
        )

    def settings(self, index: Index) -> Mapping[str, Any]:
        """When the transformers change, and the mark of Wan 2.2 5B."""
        return {"boundary_ratio": index.number("boundary_ratio"), "expand_timesteps": index.flag("expand_timesteps")}

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that do not fit each other, or text-to-video."""
        check_wan(pipeline, directory, self.layout.backbone, text_to_video)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"prompt_embeds" [B, T, D]}, T = `text_length`, as WanPipeline makes them: the tokens of a prompt attend to
        each other alone, and zeros follow them."""
        prompt_embeds, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.text_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": prompt_embeds})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """UMT5's tokens."""
        return {"prompt_embeds": (self.options.text_length, self.network.config.text_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """UMT5's tokenizer."""
        return [(self.pipeline.tokenizer, self.options.text_length)]

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Prompts of more than `text_length` tokens, once WanPipeline has cleaned them."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return super().truncated_prompts([replace(prompt, text=prompt_clean(prompt.text)) for prompt in prompts])

    def sides(self) -> tuple[range, range]:
        """Multiples of the autoencoder's factor times the patch size and of 16, as far as the position embeddings
        reach."""
        config, factor = self.network.config, self.pipeline.vae_scale_factor_spatial
        steps = [factor * patch for patch in config.patch_size[1:]]
        height, width = (multiples(math.lcm(step, PIPELINE_STEP), step * config.rope_max_seq_len) for step in steps)
        return height, width

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """(C, f, h, w) for a video of `frames` frames. Raises UserError for more than there are positions."""
        config, factor = self.network.config, self.pipeline.vae_scale_factor_spatial
        frames, reach = 1 + (self.options.frames - 1) // COMPRESSION, config.rope_max_seq_len
        if frames > reach:
            raise UserError(
                f"backbone.options.frames: {self.options.frames} is more than this checkpoint's position embeddings "
                f"reach; the most is {1 + (reach - 1) * COMPRESSION}"
            )
        return self.vae.config.z_dim, frames, height // factor, width // factor

    def belonging(self, sigma: Tensor) -> tuple[Tensor, str]:
        """WanPipeline's rule: the high-noise expert from the boundary on."""
        boundary, expert = self.pipeline.config.boundary_ratio, self.options.expert
        high = 1000 * sigma >= 1000 * boundary
        bound = f"t_min: {boundary} or more" if expert == "high" else f"t_max: less than {boundary}"
        return high if expert == "high" else ~high, f"(backbone.options.expert: {expert}); set timesteps.{bound}"

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Wan was trained on v = noise - x0."""
        out: Tensor = network(**self.inputs(x, time, conditioning), return_dict=False)[0]
        return out

    def inputs(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Arguments of the transformer: x [B, C, f, h, w] at timestep 1000 * sigma. Wan 2.2 5B has a time for every
        patch (`expand_timesteps`); in text-to-video they are all the same."""
        embeds = conditioning.tensors["prompt_embeds"]
        return {"hidden_states": x, "timestep": 1000 * time, "encoder_hidden_states": embeds}
