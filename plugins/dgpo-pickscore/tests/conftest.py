"""Tiny random checkpoints, made once, and images and prompts to score with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_reward
from dgpo_pickscore.options import AestheticOptions, PickScoreOptions
from dgpo_pickscore.rewards import AestheticReward, PickScoreReward
from dgpo_pickscore.testing import make_tiny_clip, make_tiny_head

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_head(tmp_path_factory.mktemp("head") / "head.safetensors")


@pytest.fixture(scope="session")
def pickscore(clip: Path) -> Callable[..., PickScoreReward]:
    """`pickscore(**options)`."""

    def build(**options: Any) -> PickScoreReward:
        options = {"model": str(clip), "processor": str(clip)} | options
        return PickScoreReward(PickScoreOptions(**options), device=CPU)

    return build


@pytest.fixture(scope="session")
def aesthetic(clip: Path, head: Path) -> Callable[..., AestheticReward]:
    """`aesthetic(**options)`."""

    def build(**options: Any) -> AestheticReward:
        return AestheticReward(AestheticOptions(**({"model": str(clip), "head": str(head)} | options)), device=CPU)

    return build


@pytest.fixture(scope="session")
def contract() -> Callable[[RewardModel, Tensor, list[Prompt]], None]:
    """The contract suite, but for the examples: random weights do not know good from bad."""

    def check(reward: RewardModel, media: Tensor, prompts: list[Prompt]) -> None:
        reward.examples = lambda: ()  # type: ignore[method-assign]
        check_reward(reward, media, prompts)

    return check


@pytest.fixture
def prompts() -> list[Prompt]:
    """Six, one of them twice."""
    texts = ["a red fox", "two blue houses", "", "a red fox", "Ein Haus, 3.5 % größer!", "x" * 300]
    return [Prompt(text) for text in texts]


@pytest.fixture
def images() -> Tensor:
    """Six of 48 x 40, in levels of 8 bits: smooth ones, noise, black, white."""
    draws = torch.Generator().manual_seed(0)
    smooth = torch.rand(3, 3, 4, 5, generator=draws)
    smooth = torch.nn.functional.interpolate(smooth, (40, 48), mode="bilinear")
    noise = torch.rand(1, 3, 40, 48, generator=draws)
    flat = torch.stack([torch.zeros(3, 40, 48), torch.ones(3, 40, 48)])
    return (torch.cat([smooth, noise, flat]) * 255).round() / 255
