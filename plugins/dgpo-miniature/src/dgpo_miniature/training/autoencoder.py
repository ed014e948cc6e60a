"""Trains the image autoencoders: 64x64x3 images to 8x8x4 latents (f8), small enough to decode on a CPU.

Each shape fills one cell, so most steps use single cells (a quarter of the cost); the last steps use whole images,
which adapts the statistics of the group norms. The world of signs has images of 32x64x3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dgpo_miniature.training.flow import Progress
from dgpo_miniature.world import CELL, CLASSES, COLORS, EMPTY, random_scenes, render

__all__ = ["AutoencoderSettings", "build_autoencoder", "latent_statistics", "random_images", "train_autoencoder"]

Draw = Callable[[int, np.random.Generator], Tensor]
"""(count, rng) -> images float32 [count, 3, H, W] in [-1, 1]"""


@dataclass(frozen=True, slots=True)
class AutoencoderSettings:
    """`cell_steps` on single cells, then `image_steps` on whole images; `batch` counts cells or images."""

    cell_steps: int = 2000
    image_steps: int = 250
    batch: int = 64
    lr: float = 2e-3
    kl_weight: float = 4e-4
    """Weight of the KL term (a mean over latent values) relative to the mean pixel error."""
    channels: tuple[int, ...] = (8, 16, 32, 64)
    size: int = 64


def build_autoencoder(channels: Sequence[int] = (8, 16, 32, 64), size: int = 64) -> AutoencoderKL:
    """Return an untrained autoencoder with a level for each number of channels, the first at full resolution.

    The default has 0.65 M parameters and takes 1-2 ms to decode an image of 64x64 on two CPU cores.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def random_images(count: int, rng: np.random.Generator, *, empty: float = 0.35) -> Tensor:
    """Return images of independent cells, float32 [count, 3, 64, 64] in [-1, 1]. empty: probability per cell."""
    kind = rng.integers(len(CLASSES), size=(count, 4))
    kind[rng.random((count, 4)) < empty] = EMPTY
    color = rng.integers(len(COLORS), size=(count, 4))
    return torch.from_numpy(render(random_scenes(kind, color, rng))) * 2 - 1


def cells_of(images: Tensor) -> Tensor:
    """Split images [B, 3, 64, 64] into cells [4 B, 3, 32, 32]."""
    cut = images.unfold(2, CELL, CELL).unfold(3, CELL, CELL)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, CELL, CELL)


def train_autoencoder(
    settings: AutoencoderSettings, seed: int, progress: Progress, draw: Draw = random_images
) -> AutoencoderKL:
    """Train an autoencoder on images from `draw` and return it in evaluation mode. Deterministic in its arguments.

    Single cells contain shapes, so other worlds set `cell_steps` to 0.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    model = build_autoencoder(settings.channels, settings.size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    steps = settings.cell_steps + settings.image_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        if step < settings.cell_steps:
            x = cells_of(random_images(settings.batch // 4, rng, empty=0.15))
        else:
            x = draw(settings.batch, rng)
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.sample()).sample - x
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        loss = error.abs().mean() + error.square().mean() + settings.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("autoencoder", step + 1, steps, float(loss.detach()))
    model.eval().requires_grad_(False)
    return model


@torch.no_grad()
def latent_statistics(
    model: AutoencoderKL, seed: int, count: int = 1024, draw: Draw = random_images
) -> tuple[float, float]:
    """Return (shift_factor, scaling_factor) for which (z - shift) * scale has mean 0 and variance 1."""
    rng = np.random.default_rng([seed, 2])
    latents = torch.cat([model.encode(draw(128, rng)).latent_dist.mean for _ in range(max(count // 128, 1))])
    return float(latents.mean()), float(1.0 / latents.std())
