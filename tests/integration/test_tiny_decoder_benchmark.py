"""The decoder that `python -m benchmarks.tiny_decoder` distills for the miniature."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from benchmarks.tiny_decoder import distill
from dgpo_diffusers.tiny_decoder import _opened


def test_a_decoder_learns_and_is_read_back(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = torch.randn(16, 3, 4, 4)
        images = interpolate(latents.sigmoid(), scale_factor=4)
        errors = []
        for steps in (1, 20):
            model = distill(latents, images, steps=steps)
            with torch.no_grad():
                errors.append(float((model.decoder(latents) / 2 + 0.5 - images).square().mean()))
        assert errors[1] < 0.7 * errors[0]
    model.save_pretrained(tmp_path)
    read = _opened(str(tmp_path), 3, False)
    assert (read.channels, read.factor) == (3, 4)
    assert torch.equal(read(latents), model.decoder(latents))
