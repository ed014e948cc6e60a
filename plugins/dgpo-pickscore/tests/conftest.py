"""Tiny random checkpoints, made once, and images and prompts to score with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_reward
from dgpo_pickscore import loading
from dgpo_pickscore.options import AestheticOptions, PickScoreOptions
from dgpo_pickscore.rewards import AestheticReward, PickScoreReward
from dgpo_pickscore.testing import make_tiny_clip, make_tiny_head

CPU = torch.device("cpu")
Asked = list[tuple[str, str | None, list[str]]]


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Asked]:
    """`hub(checkpoint)` plays the Hub by a directory of its cache, named by the commit 0123abc; returns the list of
    what is asked: repository, revision and patterns of files."""

    def play(checkpoint: Path) -> Asked:
        snapshot = Path(shutil.copytree(checkpoint, tmp_path / "snapshots" / "0123abc"))
        asked: Asked = []

        def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((repository, revision, allow_patterns))
            return str(snapshot)

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(loading, "snapshot_download", download)
        return asked

    return play
