"""Tiny random LTX-Video checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_t5

__all__ = ["make_tiny_ltx_video"]


def make_tiny_ltx_video(
    directory: str | Path, *, denoising: bool = False, shift: dict[str, Any] | None = None, seed: int = 0
) -> Path:
    """Write a random LTX-Video pipeline with the shift of 0.9.0: it depends on the number of tokens and ends at 0.1.

    The transformer has two blocks of the width 24; the autoencoder makes latents of 32 pixels a side and 8 frames, with
    means and standard deviations of no special kind. Prompts are read letter by letter. denoising: with a decoder that
    is told a time and adds noise, as that of 0.9.1; shift: other settings of the scheduler. The same arguments give the
    same weights, and the global random state is left alone. Returns the directory as a Path.
    """

    def autoencoder() -> Any:
        levels = 3
        vae = diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            down_block_types=("LTXVideoDownBlock3D",) * levels,
            layers_per_block=(1,) * (levels + 1),
            decoder_layers_per_block=(1,) * (levels + 1),
            spatio_temporal_scaling=(True,) * levels,
            decoder_spatio_temporal_scaling=(True,) * levels,
            decoder_inject_noise=(denoising,) * (levels + 1),
            downsample_type=("conv",) * levels,
            upsample_residual=(denoising,) * levels,
            upsample_factor=(1,) * levels,
            timestep_conditioning=denoising,
            patch_size=4,
            scaling_factor=1.3,
        )
        vae.latents_mean.copy_(torch.linspace(-1.0, 1.5, 8))
        vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:  # zeros at first
                torch.nn.init.constant_(parameter, 0.3)
        return vae.eval()

    def make() -> Any:
        published = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
        published |= {"base_image_seq_len": 1024, "max_image_seq_len": 4096}
        return library_class("LTXPipeline")(
            transformer=diffusers.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=12,
                cross_attention_dim=24,
                num_layers=2,
                caption_channels=16,
            ).eval(),
            vae=autoencoder(),
            **text_encoders(tiny_t5(16)),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**published if shift is None else shift),
        )

    return save_seeded(directory, seed, make)
