"""LTX-Video text-to-video (HaCohen et al., arXiv 2501.00103) as a backbone.

Shape letters: B samples, C latent channels, F frames (f of latents: 1 + (F - 1) / 8), H W height and width of frames (h
w of latents: pixels / 32), T text tokens, D their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.ltx_video.names import NAMES
from dgpo_diffusers.families.ltx_video.options import COMPRESSION
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import T5_VOCABULARY, Layout
from dgpo_schemas.problems import show

if TYPE_CHECKING:
    from dgpo_diffusers.families.ltx_video.options import LTXVideoOptions

__all__ = ["LTXVideoBackbone"]

PIPELINE_STEP = 32
"""LTXPipeline accepts sides that are multiples of this, for every checkpoint."""
SEED = 0
"""Of the noise that a decoder with `timestep_conditioning` starts from."""


class LTXVideoBackbone(DiffusersBackbone):
    """diffusers' LTX-Video transformer, autoencoder and text encoder; trains a peft LoRA, or the whole transformer.

    Latents have shape [C, f, h, w] outside the transformer, which receives each position as a token. Decoders that
    denoise (0.9.1 and later) receive the same noise for each sample and in each call.
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

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if components do not match each other, or for unsupported statistics of latents."""
        config, vae = pipeline.transformer.config, pipeline.vae
        allowed = {"in_channels": vae.config.latent_channels, "out_channels": vae.config.latent_channels}
        allowed |= {"patch_size": 1, "patch_size_t": 1, "caption_channels": pipeline.text_encoder.config.d_model}
        for name, value in allowed.items():
            if config[name] != value:
                raise UserError(
                    f"backbone.checkpoint: {directory}/transformer/config.json: {name} is {show(config[name])}; "
                    f"allowed is {value} with the models beside it"
                )
        if vae.temporal_compression_ratio != COMPRESSION:
            raise UserError(
                f"backbone.checkpoint: {directory}/vae encodes {vae.temporal_compression_ratio} frames in a latent "
                f"frame; allowed is {COMPRESSION}"
            )
        if not (bool(vae.latents_mean.isfinite().all()) and bool((vae.latents_std > 0).all())):
            raise UserError(
                f"backbone.checkpoint: {directory}/vae: latents_mean and latents_std must be finite numbers, "
                "latents_std above 0"
            )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D], "mask" [B, T]}, T = `text_length`: T5 token embeddings, computed with
        padding and without a mask, and 1 for tokens of the prompt, 0 for padding, which the transformer ignores."""
        prompt_embeds, mask, _, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.text_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": prompt_embeds, "mask": mask.to(prompt_embeds.dtype)})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shapes of T5's token embeddings and of their mask."""
        length = self.options.text_length
        return {"prompt_embeds": (length, self.network.config.caption_channels), "mask": (length,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return T5's tokenizer with its maximum length."""
        return [(self.pipeline.tokenizer, self.options.text_length)]

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

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, f, h, w] at timestep 1000 * sigma; positions are in seconds and
        pixels."""
        frames, height, width = x.shape[2:]
        factor = self.vae.spatial_compression_ratio
        out: Tensor = network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.tensors["prompt_embeds"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=1000 * time,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(COMPRESSION / self.options.fps, factor, factor),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).reshape(x.shape)

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode x0 [B, C, f, h, w] to [B, 3, F, H, W], deterministically and independently of other rows: the noise of
        decoders with `timestep_conditioning` has a fixed seed, also that which they draw themselves."""
        vae = self.vae
        std, mean = (t.view(1, -1, 1, 1, 1).to(x0) for t in (vae.latents_std, vae.latents_mean))
        z, time = x0 * std / vae.config.scaling_factor + mean, None
        if vae.config.timestep_conditioning:
            scale, time = self.options.decode_noise, x0.new_full((len(x0),), self.options.decode_timestep)
            noise = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(SEED))
            z = (1 - scale) * z + scale * noise.to(z)
        devices = [x0.device] if x0.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[d.index] for d in devices)):
                generator.manual_seed(SEED)
            pixels: Tensor = vae.decode(z, time, return_dict=False)[0]
        return pixels
