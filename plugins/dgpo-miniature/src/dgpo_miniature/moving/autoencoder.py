"""Trains the video autoencoder: clips [3, 5, 32, 32] to latents [4, 2, 8, 8], small enough to decode on a CPU.

The architecture is that of Wan's VAE (causal, 4 frames per latent frame after the first). Training uses single frames,
which teach shapes and colors cheaply, then clips, then only the decoder. Shapes cover a twelfth of a frame, so their
pixels have a larger weight at first; otherwise the model would long predict only the background. The weight makes
shapes slightly too large, which the training of the decoder corrects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.moving.world import random_clips, render
from dgpo_miniature.training.flow import Progress

__all__ = ["CHANNELS", "AutoencoderSettings", "Stage", "build_autoencoder", "random_videos", "train_autoencoder"]

CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps with `batch` clips or frames each. foreground: loss weight of saturated pixels; others have weight 1."""

    steps: int
    batch: int
    foreground: float
    lr: float = 2e-3


@dataclass(frozen=True, slots=True)
class AutoencoderSettings:
    """The three stages."""

    frames: Stage = Stage(700, 32, foreground=10.0)
    clips: Stage = Stage(800, 16, foreground=4.0)
    decoder: Stage = Stage(300, 16, foreground=1.5, lr=1e-3)
    noise: float = 0.1
    """Standard deviation of noise added to latents, which makes the decoder robust to small errors."""
    decay: float = 1e-5
    """Weight of the mean square of the latents, which keeps their magnitude near 1."""


def build_autoencoder() -> AutoencoderKLWan:
    """Return an untrained autoencoder with about 0.5 M parameters."""
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def random_videos(count: int, rng: np.random.Generator) -> Tensor:
    """Return random clips as input of the autoencoder, float32 [count, 3, F, 32, 32] in [-1, 1]."""
    shape, color, direction = (rng.integers(len(names), size=count) for names in (SHAPES, COLORS, DIRECTIONS))
    videos = torch.from_numpy(render(random_clips(shape, color, direction, rng)))
    return (videos * 2 - 1).transpose(1, 2).contiguous()


def train_autoencoder(settings: AutoencoderSettings, seed: int, progress: Progress) -> AutoencoderKLWan:
    """Train an autoencoder and return it in evaluation mode, with the latents' statistics in its configuration.

    Deterministic in its arguments.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    model = build_autoencoder().train()

    def frames(count: int) -> Tensor:
        videos = random_videos(count, rng)
        at = int(rng.integers(videos.shape[2]))
        return videos[:, :, at : at + 1]

    def clips(count: int) -> Tensor:
        return random_videos(count, rng)

    _train(model, settings.frames, settings, frames, "autoencoder, frames", progress)
    _train(model, settings.clips, settings, clips, "autoencoder, clips", progress)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    _train(model, settings.decoder, settings, clips, "autoencoder, decoder", progress)
    model.eval().requires_grad_(False)
    mean, std = latent_statistics(model, seed)
    model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return model


def _train(
    model: AutoencoderKLWan,
    stage: Stage,
    settings: AutoencoderSettings,
    draw: Callable[[int], Tensor],
    name: str,
    progress: Progress,
) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=stage.steps, pct_start=0.1)
    for step in range(stage.steps):
        x = draw(stage.batch)
        latents = model.encode(x).latent_dist.mean
        error = model.decode(latents + settings.noise * torch.randn_like(latents)).sample - x
        saturated = (x.amax(1, keepdim=True) - x.amin(1, keepdim=True)) > 0.5
        weight = torch.where(saturated, stage.foreground, 1.0)
        loss = (weight * (error.abs() + error.square())).mean() + settings.decay * latents.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress(name, step + 1, stage.steps, float((error.abs() + error.square()).mean().detach()))


@torch.no_grad()
def latent_statistics(model: AutoencoderKLWan, seed: int, count: int = 512) -> tuple[Tensor, Tensor]:
    """Return (mean, std), each [CHANNELS], of the latents of random clips."""
    rng = np.random.default_rng([seed, 2])
    parts = [model.encode(random_videos(32, rng)).latent_dist.mean for _ in range(max(count // 32, 1))]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    return latents.mean(1), latents.std(1)
