"""LTX-Video text-to-video (HaCohen et al., arXiv 2501.00103) as a backbone.

Shape letters: B samples, C latent channels, F frames (f of latents: 1 + (F - 1) / 8), H W height and width of frames (h
w of latents: pixels / 32), T text tokens, D their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.ltx_video.checks import check_ltx_video
from dgpo_diffusers.families.ltx_video.decoding import decoded
from dgpo_diffusers.families.ltx_video.names import NAMES
from dgpo_diffusers.families.ltx_video.options import COMPRESSION
from dgpo_diffusers.families.ltx_video.times import causal_positions, linear_quadratic
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import T5_VOCABULARY, Layout

if TYPE_CHECKING:
    from dgpo_diffusers.families.ltx_video.options import LTXVideoOptions

__all__ = ["LTXVideoBackbone"]

PIPELINE_STEP = 32
"""LTXPipeline accepts sides that are multiples of this, for every checkpoint."""


class LTXVideoBackbone(DiffusersBackbone):
    """diffusers' LTX-Video transformer, autoencoder and text encoder; trains a peft LoRA, or the whole transformer.

    Latents have shape [C, f, h, w] outside the transformer, which receives each position as a token. Checkpoints of
    LTXConditionPipeline (0.9.5 and later) have that pipeline's times and positions of frames. Decoders that denoise
    (0.9.1 and later) receive the same noise for each sample and in each call.
    """

    media = "video"
    options: LTXVideoOptions
    layout = Layout(
        backbone="ltx-video",
        family="LTX-Video text-to-video",
        pipeline="LTXPipeline",
        models={
            "transformer": "LTXVideoTransformer3DModel",
            "vae": "AutoencoderKLLTXVideo",
            "text_encoder": "T5EncoderModel",
        },
        vocabularies={"tokenizer": T5_VOCABULARY},
        accepted=("LTXConditionPipeline",),
        alike="LTXImageToVideoPipeline",
        numbers={"transformer": ("in_channels",), "vae": ("scaling_factor",)},
        grid="even",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),  # of attn1 and attn2 in every block
        comfyui=NAMES.comfyui_pairs,
    )

    @property
    def fps(self) -> float:  # type: ignore[override]
        """Frames per second, an input of the transformer."""
        return self.options.fps

    @property
    def conditional(self) -> bool:
        """Whether the checkpoint is of LTXConditionPipeline, LTX-Video 0.9.5 or later."""
        return self.index.data.get("_class_name") in self.layout.accepted

    @property
    def text_length(self) -> int:
        """Number of T5 tokens per prompt, including padding."""
        return self.options.text_length or (256 if self.conditional else 128)

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if components do not match each other, or for unsupported statistics of latents."""
        check_ltx_video(pipeline, directory)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D], "mask" [B, T]}, T = `text_length`: T5 token embeddings, and 1 for tokens
        of the prompt, 0 for padding, which the transformer ignores. T5 itself attends to padding in LTXPipeline, and
        does not in LTXConditionPipeline."""
        given = self.pipeline.tokenizer(
            [prompt.text for prompt in prompts],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        )
        tokens, mask = given.input_ids.to(self.device), given.attention_mask.to(self.device)
        text = self.pipeline.text_encoder(tokens, attention_mask=mask if self.conditional else None)[0]
        return Conditioning({"prompt_embeds": text, "mask": mask.to(text.dtype)})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shapes of T5's token embeddings and of their mask."""
        length = self.text_length
        return {"prompt_embeds": (length, self.network.config.caption_channels), "mask": (length,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return T5's tokenizer with its maximum length."""
        return [(self.pipeline.tokenizer, self.text_length)]

    def sides(self) -> tuple[range, range]:
        """Return multiples of the autoencoder's factor and of 32."""
        possible = multiples(math.lcm(self.vae.spatial_compression_ratio, PIPELINE_STEP))
        return possible, possible

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return (C, f, h, w) for a video of `frames` frames."""
        factor = self.vae.spatial_compression_ratio
        frames = 1 + (self.options.frames - 1) // COMPRESSION
        return self.vae.config.latent_channels, frames, height // factor, width // factor

    def tokens(self, height: int, width: int) -> int:
        """Return the number of positions of a latent, on which the shift of 0.9.0 and 0.9.1 depends."""
        return math.prod(self.latents(height, width)[1:])

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Return the schedule of the checkpoint's pipeline."""
        found = super().schedule(height, width, steps)
        return replace(found, grid=linear_quadratic(steps)) if self.conditional else found

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, f, h, w] at timestep 1000 * sigma; positions are in seconds and
        pixels."""
        shape, fps, factor = tuple(x.shape[2:]), self.options.fps, self.vae.spatial_compression_ratio
        places: dict[str, Any]
        if self.conditional:
            places = {"video_coords": causal_positions(shape, fps, COMPRESSION, factor, x.device)}
        else:
            places = dict(zip(("num_frames", "height", "width"), shape, strict=True))
            places["rope_interpolation_scale"] = (COMPRESSION / fps, factor, factor)
        out: Tensor = network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.tensors["prompt_embeds"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=1000 * time,
            return_dict=False,
            **places,
        )[0]
        return out.transpose(1, 2).reshape(x.shape)

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode x0 [B, C, f, h, w] to [B, 3, F, H, W], deterministically and independently of other rows."""
        return decoded(self.vae, x0, time=self.options.decode_timestep, noise=self.options.decode_noise)
