"""Decoding of LTX-Video's latents without chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgpo_core.transfers import to_device

__all__ = ["SEED", "decoded"]

SEED = 0
"""Seed of all noise of decoding."""


def decoded(vae: Any, x0: Tensor, *, time: float, noise: float) -> Tensor:
    """Decode x0 [B, C, f, h, w] to videos [B, 3, F, H, W].

    time, noise: for decoders with `timestep_conditioning`: the time that they are told, and the share of noise in their
    input. Each row gets the same noise, as does each layer that adds noise itself, which it draws from the global
    random state, so that a video depends on its latents alone. The global random state is left alone.
    """
    std, mean = (t.view(1, -1, 1, 1, 1).to(x0) for t in (vae.latents_std, vae.latents_mean))
    z, times = x0 * std / vae.config.scaling_factor + mean, None
    if vae.config.timestep_conditioning:
        times = x0.new_full((len(x0),), time)
        drawn = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(SEED))
        z = (1 - noise) * z + noise * to_device(drawn, z.device, z.dtype)
    devices = [x0.device] if x0.is_cuda else []
    mps = torch.mps.get_rng_state() if x0.device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=devices):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[d.index] for d in devices)):
                generator.manual_seed(SEED)
            if mps is not None:
                torch.mps.manual_seed(SEED)
            pixels: Tensor = vae.decode(z, times, return_dict=False)[0]
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)
    return pixels
