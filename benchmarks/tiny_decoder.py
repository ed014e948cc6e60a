"""`python -m benchmarks.tiny_decoder DIRECTORY`: distill a tiny decoder for the miniature.

Published tiny decoders belong to published autoencoders; the miniature has its own. With this one, `dgpo decoders`
shows on a CPU what a coarse decoder changes in a reward.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.measuring import QUICKSTART
from dgpo_core.api.target import open_target
from dgpo_core.draws import Draws

__all__ = ["distill", "main"]

SAMPLES, HELD = 512, 64
"""Latents: samples of the base model for training prompts; the last ones measure the reconstruction."""
WIDTH, BLOCKS = 16, 2
"""Channels of the decoder, and residual blocks at each resolution. TAESD has 64 and 3."""
BATCH, LEARNING_RATE = 16, 3e-3


def distill(latents: Tensor, images: Tensor, *, steps: int, seed: int = 0) -> Any:
    """Train a decoder on latents [B, C, h, w] and images [B, 3, H, W] in [0, 1] of the full one; AutoencoderTiny."""
    doublings = int(math.log2(images.shape[-1] // latents.shape[-1]))
    sizes = {f"{part}_block_out_channels": (WIDTH,) * (doublings + 1) for part in ("encoder", "decoder")}
    counts = {f"num_{part}_blocks": (BLOCKS,) * doublings + (1,) for part in ("encoder", "decoder")}
    torch.manual_seed(seed)
    model: Any = AutoencoderTiny(latent_channels=latents.shape[1], **sizes, **counts)
    optimizer = torch.optim.Adam(model.decoder.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(latents), (BATCH,))
        loss = mse_loss(model.decoder(latents[chosen]), images[chosen] * 2 - 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model


def main(
    directory: Annotated[Path, typer.Argument(help="Where to write the decoder.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam.")] = 300,
) -> None:
    """Distill a tiny decoder for the miniature and print how closely it reconstructs the full one's images."""
    target = open_target(QUICKSTART, model="base", on_message=typer.echo)
    engine = target.engine
    prompts = (target.prompts("train") * SAMPLES)[:SAMPLES]
    groups = engine.rollout_sampler().sample_groups(target.checked(prompts, None), 1, Draws(0).at("decoder"), "base")
    latents = torch.cat([rollout.x0 for rollout in groups])
    images = engine.backbone.decode(latents)
    model = distill(latents[:-HELD], images[:-HELD], steps=steps)
    with torch.no_grad():
        found = (model.decoder(latents[-HELD:]) / 2 + 0.5).clamp(0, 1)
    error = (found - images[-HELD:]).square().mean((1, 2, 3))
    model.save_pretrained(directory)
    engine.close()
    typer.echo(f"{directory}: {float((-10 * error.log10()).mean()):.1f} dB on {HELD} other samples")


if __name__ == "__main__":
    typer.run(main)
