"""Random draws from explicit keys, never from global state.

A `Draws` is a key: the run's seed and a tuple of what the draw is for. The same key gives the same numbers whatever
was drawn before, however groups are sharded across processes, and after a resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Draws", "normal_rows"]

Key = int | str


@dataclass(frozen=True, slots=True)
class Draws:
    """A key for random draws: `Draws(seed).at("rollout", iteration, group, member)`."""

    seed: int
    key: tuple[Key, ...] = ()

    def at(self, *key: Key) -> Draws:
        """The key with more parts."""
        return Draws(self.seed, self.key + key)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator seeded by a 64-bit hash of the key."""
        text = repr((self.seed, *self.key)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
        return torch.Generator(device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal float32 of a shape. (Devices differ in their streams; one device repeats itself.)"""
        return torch.randn(shape, generator=self.generator(device), device=device)

    def uniform(self, count: int) -> Tensor:
        """float64 [count] in [0, 1) on the CPU."""
        return torch.rand(count, generator=self.generator(), dtype=torch.float64)

    def permutation(self, count: int) -> Tensor:
        """A random order of range(count), int64 on the CPU."""
        return torch.randperm(count, generator=self.generator())


def normal_rows(keys: list[Draws], shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Standard normal [len(keys), *shape], one key per row, so that any split of the rows gives the same rows."""
    out = torch.empty((len(keys), *shape), device=device)
    for row, key in zip(out, keys, strict=True):
        row.normal_(generator=key.generator(device))
    return out
