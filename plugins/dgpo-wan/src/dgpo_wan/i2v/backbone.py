"""Wan 2.1 and 2.2 image-to-video (Wan Team, arXiv 2503.20314) as a backbone.

Shape letters as in `dgpo_wan.backbone`; I tokens of the condition image. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from dgpo_core.transfers import to_device
from dgpo_core.types import Conditioning, Prompt
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.checks import check_wan
from dgpo_wan.i2v.checks import check_text_length, image_to_video
from dgpo_wan.i2v.images import check_images, example_image, image_of
from dgpo_wan.options import COMPRESSION

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_schemas.sections.backbone import BackboneSection
    from dgpo_wan.i2v.options import ImageToVideoOptions

__all__ = ["ImageToVideoBackbone"]

SMALLEST = 1e-4
"""Smallest sigma that is divided by."""


class ImageToVideoBackbone(WanBackbone):
    """Wan's image-to-video transformers, which continue a prompt's condition image as the first frame.

    Wan 2.1 and 2.2 A14B read the image's latents in additional channels, Wan 2.1 also its CLIP embedding. Wan 2.2 5B
    (`expand_timesteps`) has them in place of the first latent frame, with time 0; that frame moves from its noise to
    the image on a straight line, so that it equals the image at sigma = 0 and adds nothing to losses.
    """

    options: ImageToVideoOptions
    layout = replace(
        WanBackbone.layout,
        backbone="wan-i2v",
        family="Wan 2.1 and 2.2 image-to-video; text-to-video, VACE and Animate are other pipelines",
        pipeline="WanImageToVideoPipeline",
        models={**WanBackbone.layout.models, "image_encoder": "CLIPVisionModel"},
        accepted=("WanPipeline",),  # Wan 2.2 5B, which both pipelines read
        processors={"image_processor": "image_encoder"},
        exact=("vae", "image_encoder"),
        alike="",
        lora_targets=(*WanBackbone.layout.lora_targets, "add_k_proj", "add_v_proj"),
    )

    def __init__(self, section: BackboneSection, options: ImageToVideoOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        check_text_length(self.network.config, options.text_length)

    @property
    def first_frame(self) -> bool:
        """Whether the image's latents replace the first latent frame, as in Wan 2.2 5B."""
        return bool(self.pipeline.config.expand_timesteps)

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Without the image encoder if there is none (Wan 2.2)."""
        encoder = index.part("image_encoder") is not None
        return [name for name in super().components_to_load(index) if encoder or name != "image_encoder"]

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that do not fit each other, or image-to-video."""
        check_wan(pipeline, directory, self.layout.backbone, image_to_video)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, naming the prompt, unless each has one condition image."""
        check_images(prompts, self.layout.backbone)

    def example(self, size: tuple[int, int]) -> Prompt:
        """A prompt of this size with a small condition image."""
        return Prompt("", media=(example_image(),), size=size)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """In addition to those of text-to-video: {"condition" [B, C, f, h, w], "image_embeds" [B, I, D]}.

        condition: float32, the normalized latents of the image, resized to the sample without cropping, and of gray
        frames after it; [B, C, 1, h, w] of the image alone for Wan 2.2 5B. image_embeds: the hidden states before the
        last layer of CLIP's, for Wan 2.1. Each image is encoded by itself, once per call.
        """
        found: dict[tuple[str, tuple[int, int] | None], dict[str, Tensor]] = {}
        for prompt in prompts:
            (medium,) = prompt.media
            key = medium.digest, prompt.size
            if key not in found:
                found[key] = self._image_rows(image_of(medium), prompt.size)
        rows = [found[prompt.media[0].digest, prompt.size] for prompt in prompts]
        return Conditioning({**super().embed(prompts).tensors} | {n: torch.cat([r[n] for r in rows]) for n in rows[0]})

    def _image_rows(self, image: Image.Image, size: tuple[int, int] | None) -> dict[str, Tensor]:
        assert size is not None, "every prompt has a size"
        height, width = size
        first = self.pipeline.video_processor.preprocess(image, height=height, width=width).to(self.device)[:, :, None]
        frames = 1 if self.first_frame else self.options.frames
        video = torch.cat([first, first.new_zeros(1, 3, frames - 1, height, width)], 2)
        statistics = self.vae.config.latents_mean, self.vae.config.latents_std
        mean, std = (to_device(n, self.device).view(1, -1, 1, 1, 1) for n in statistics)
        found = {"condition": (self.vae.encode(video).latent_dist.mode() - mean) * (1 / std)}
        if self.network.config.image_dim is not None:
            found["image_embeds"] = self.pipeline.encode_image(image, self.device).to(self.dtype)
        return found

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """UMT5's tokens, and CLIP's of Wan 2.1: one for each patch, and one for the whole image."""
        if self.network.config.image_dim is None:
            return super().rows()
        config = self.pipeline.image_encoder.config
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        return {**super().rows(), "image_embeds": (tokens, config.hidden_size)}

    def condition_rows(self, height: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """The latents of the condition image."""
        channels, frames, *sides = self.latents(height, width)
        return {"condition": (channels, 1 if self.first_frame else frames, *sides)}

    def inputs(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Those of text-to-video: x in the first C of 2 C + 4 channels, before a mask, 1 in the first latent frame,
        and the condition; or with the condition as the first latent frame, and a time for every patch."""
        condition = conditioning.tensors["condition"].to(x)
        if self.first_frame:
            x = torch.cat([condition, x[:, :, 1:]], 2)
            _, down, right = self.network.config.patch_size
            patches = (x.shape[3] // down) * (x.shape[4] // right)
            later = torch.arange(x.shape[2], device=x.device).repeat_interleave(patches) > 0
            return super().inputs(x, time[:, None] * later, conditioning)
        mask = x.new_zeros(len(x), COMPRESSION, *x.shape[2:])
        mask[:, :, 0] = 1
        given = super().inputs(torch.cat([x, mask, condition], 1), time, conditioning)
        if "image_embeds" in conditioning.tensors:
            given["encoder_hidden_states_image"] = conditioning.tensors["image_embeds"]
        return given

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, float32 [B, C, f, h, w]; in Wan 2.2 5B's first latent frame, that of the straight line
        to the condition: (x_sigma - condition) / sigma."""
        found = super().velocity(x_sigma, sigma, conditioning)
        if not self.first_frame:
            return found
        known = (x_sigma[:, :, :1] - conditioning.tensors["condition"]) / sigma.clamp(min=SMALLEST).view(-1, 1, 1, 1, 1)
        return torch.cat([known, found[:, :, 1:]], 2)
