"""A model with random weights, and prompts and a reward that cost nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import PromptSource, RewardModel
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt, Scores
from dgpo_sd3.options import SD3Options
from dgpo_wan.options import WanOptions

__all__ = ["registry_with_components"]


class Free(RewardModel):
    """Mean of the first pixels: differs for every sample, at no cost."""

    media = frozenset({"image", "video"})
    range = (-1e6, 1e6)

    def score(self, media: Tensor, prompts: Any) -> Scores:
        """Return the mean of the first 4 x 4 pixels."""
        values = media[..., :4, :4].float().flatten(1).mean(1)
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))


class Waiting(Free):
    """As `Free`, reading values on the host on the way, as detectors do for every mask."""

    waits = 20

    def score(self, media: Tensor, prompts: Any) -> Scores:
        """Return the mean of the first 4 x 4 pixels, after `waits` others were read."""
        for i in range(self.waits):
            float(media[i % len(media), ..., i::8].mean())
        return super().score(media, prompts)


class Numbered(PromptSource):
    """64 different prompts."""

    def prompts(self, split: str) -> list[Prompt]:
        """Return the same prompts for every split."""
        return [Prompt(f"image {i}") for i in range(64)]


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [
            Component("sd3-random", "SD3 with random weights", "benchmarks.random_weights:RandomSD3", SD3Options),
            Component("wan-random", "Wan with random weights", "benchmarks.random_weights:RandomWan", WanOptions),
        ]

    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [
            Component("free", "No work", "benchmarks.parts:Free"),
            Component("waiting", "No work, and 20 waits for the device", "benchmarks.parts:Waiting"),
        ]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        return [Component("numbered", "Numbered prompts", "benchmarks.parts:Numbered")]


def registry_with_components() -> Registry:
    """Return a registry of the installed components and those of the benchmarks."""
    made = Registry()
    made.register(_Plugin(), distribution="benchmarks")
    return made
