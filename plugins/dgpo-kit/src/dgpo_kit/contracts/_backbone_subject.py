"""The backbone under test, with the calls that its checks share."""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dgpo_core.contracts import Adapter, Backbone
from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.contracts._assertions import normal

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A backbone built by `make`, with texts, a supported size and an unsupported one to check it with."""

    make: Callable[[], Backbone]
    backbone: Backbone
    size: tuple[int, int]
    impossible: tuple[int, int] | None
    texts: Sequence[str]
    tolerance: float

    @property
    def prompts(self) -> list[Prompt]:
        return [replace(self.backbone.example(self.size), text=text) for text in self.texts]

    @cached_property
    def conditioning(self) -> Conditioning:
        """The rows of the prompts, encoded once, as in a run."""
        return self.backbone.encode(self.prompts)

    def arguments(self) -> tuple[Tensor, Tensor, Conditioning]:
        """Return the arguments of `velocity`: one row per text, sigma descending over `sigma_range`."""
        count = len(self.texts)
        x_sigma = normal(count, *self.backbone.latent_shape(*self.size))
        low, high = self.backbone.sigma_range
        return x_sigma, torch.linspace(high, low, count), self.conditioning

    @torch.no_grad()
    def velocity(self) -> Tensor:
        return self.backbone.velocity(*self.arguments())

    @property
    def adapter(self) -> Adapter:
        """The adapter. Raises SkipTest if there is none."""
        if self.backbone.adapter is None:
            raise unittest.SkipTest("every weight is trained, there is no adapter")
        return self.backbone.adapter

    def base_velocity(self) -> Tensor:
        """Return the velocity with the adapter disabled."""
        with self.adapter.off():
            return self.velocity()

    @contextlib.contextmanager
    def moved_weights(self) -> Iterator[None]:
        """Replace the data of the trained parameters within the block, as the engine does."""
        parameters = list(self.backbone.trainable().values())
        start = [parameter.data for parameter in parameters]
        for i, parameter in enumerate(parameters):
            parameter.data = start[i] + 0.1 * normal(*parameter.shape, seed=i)
        try:
            yield
        finally:
            for parameter, tensor in zip(parameters, start, strict=True):
                parameter.data = tensor
