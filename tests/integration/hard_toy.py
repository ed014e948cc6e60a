"""A toy model with everything at once that makes batches hard: rows of different lengths, prompts with negative prompts
and sizes of their own, noise prediction with a start below 1, times that depend on the size, weights of errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.flow.velocity import velocity_from_epsilon
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_kit.toy import CONDITION, SizedPrompts, SizedPromptsOptions, ToyBackbone, ToyOptions

__all__ = ["HardToy", "hard_plugin"]

LOW, HIGH = 0.03, 0.93
LONGEST = 5


class HardToy(ToyBackbone):
    """The toy's network as one that predicts noise, conditioned on the mean of 1 to 5 tokens of a text."""

    sigma_range = (LOW, HIGH)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"tokens" [B, L, 4] hashed from text and place, "mask" [B, L]}, of one length for each prompt."""
        rows = []
        for prompt in prompts:
            length = 1 + sum(prompt.text.encode()) % LONGEST
            digests = [hashlib.sha256(f"{i} {prompt.text}".encode()).digest()[:CONDITION] for i in range(length)]
            tokens = torch.tensor([list(digest) for digest in digests], device=self.device, dtype=self.dtype)
            mask = torch.ones(1, length, device=self.device, dtype=torch.bool)
            lengths = {"tokens": (length,), "mask": (length,)}
            rows.append(Conditioning({"tokens": tokens[None] / 127.5 - 1, "mask": mask}, lengths))
        return Conditioning.cat(rows)

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """(epsilon - x) / (1 - sigma)."""
        tokens, mask = conditioning.tensors["tokens"], conditioning.tensors["mask"].to(self.dtype)
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        epsilon = super().velocity(x_sigma, sigma, Conditioning({"c": mean}))
        return velocity_from_epsilon(x_sigma, epsilon, sigma)

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Shifted the less the more pixels there are."""
        return Schedule(shift=(64 / (height * width)) ** 0.25, grid="even", terminal=0.05, first=HIGH)

    def start(self, sigma: float) -> float:
        """Noise of variance 1 in VP coordinates."""
        return float(((1 - sigma) ** 2 + sigma**2) ** 0.5)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The error of the noise."""
        return (1 - sigma).square()


class HardPrompts(SizedPrompts):
    """Prompts with sizes, of which every third has a negative prompt."""

    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """Some share a negative prompt, some have none."""
        found = super().prompts(split)
        return [replace(p, negative=f"dark {i % 2}") if i % 3 == 0 else p for i, p in enumerate(found)]


class HardPlugin:
    """The hard toy and its prompts."""

    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        """The model."""
        return [Component("hard-toy", "Toy that is hard to batch", f"{__name__}:HardToy", ToyOptions)]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        """The prompts."""
        where = f"{__name__}:HardPrompts"
        return [Component("hard-toy", "With sizes and negatives", where, SizedPromptsOptions)]


hard_plugin = HardPlugin()
