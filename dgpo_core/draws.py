"""Random numbers from explicit keys instead of global state.

A key consists of the run's seed and a tuple that identifies the draw. The same key yields the same numbers regardless
of earlier draws, of how groups are split across ranks, and after a resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Draws", "SampleDraws", "fill_normal", "normal_rows"]

Key = int | str

CHUNK = 2**15
"""Elements that are drawn at once on CUDA: 128 blocks of 256 threads. Cards with 32 multiprocessors hold them at once,
and with 1,536 or more threads in each multiprocessor, as since 2020, those with 22."""


@dataclass(frozen=True, slots=True)
class Draws:
    """A random key: `Draws(seed).at("rollout", iteration, group, member)`."""

    seed: int
    key: tuple[Key, ...] = ()

    def at(self, *key: Key) -> Draws:
        """Return a key extended by `key`."""
        return Draws(self.seed, self.key + key)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a new generator, seeded with a 63-bit hash of the key; for MPS it is on the CPU."""
        text = repr((self.seed, *self.key)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
        return torch.Generator("cpu" if torch.device(device).type == "mps" else device).manual_seed(seed)

    def normal(self, shape: int | tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Draw standard normal float32 numbers. MPS gets the numbers of the CPU; those of CUDA are others.

        shape: sizes, or the only one.
        """
        return fill_normal(torch.empty(shape, device=device), self.generator(device))

    def uniform(self, shape: int | tuple[int, ...]) -> Tensor:
        """Draw uniform float64 numbers in [0, 1) on the CPU. shape: sizes, or the only one."""
        return torch.rand(shape, generator=self.generator(), dtype=torch.float64)

    def permutation(self, count: int) -> Tensor:
        """Draw a random permutation of range(count): int64 [count] on the CPU."""
        return torch.randperm(count, generator=self.generator())


class SampleDraws(Protocol):
    """The keys of samples: those of `Draws`, extended by group and member, or others (`flow.candidates`)."""

    def at(self, group: int, member: int, /) -> Draws:
        """Return the key of a sample."""


def normal_rows(keys: list[Draws], shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Draw standard normal numbers [len(keys), *shape], one key per row, so that a row does not depend on the batch."""
    out = torch.empty((len(keys), *shape), device=device)
    for row, key in zip(out, keys, strict=True):
        fill_normal(row, key.generator(device))
    return out


def fill_normal(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a contiguous tensor with standard normal numbers, the same on any CUDA card.

    torch's kernel runs at most as many threads as the card holds at once, and each takes the next numbers of a stream
    of its own: which number an element gets depends on the number of multiprocessors as soon as the elements exceed
    these threads. Pieces of `CHUNK` elements never do. A generator on the CPU would be independent of the card too, but
    it takes the host about 20 ns an element: 40 ms for a video, for each member and timestep.

    A tensor on MPS is filled from a generator on the CPU: torch's generator there is not documented to give the same
    numbers on every chip, and a run has the same noise on both.
    """
    if out.device.type == "mps":
        return out.copy_(torch.empty(out.shape, dtype=out.dtype).normal_(generator=generator))
    if out.device.type != "cuda":
        return out.normal_(generator=generator)
    for chunk in torch.split(out.view(-1), CHUNK):
        chunk.normal_(generator=generator)
    return out
