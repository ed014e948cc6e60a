"""Fixtures that every test may use: a registry that also knows the toy components, small run files, and the command
line."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_cli.plugin
import dgpo_core.plugins.registry as registry_module
import dgpo_kit.plugin
import dgpo_lab.plugin
from dgpo_cli.main import main
from dgpo_core.builtin import plugin as builtin
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import BrightnessOptions, BrightnessReward, ToyBackbone, ToyOptions, plugin, run_data
from dgpo_remote import plugin as places
from dgpo_schemas.run import RunConfig


def pytest_collection_finish() -> None:
    """What modules hold stays: the garbage collector need not look through all of it again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors on two threads are slower than on one, and several tests may run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine makes no command print that it is still at work."""
    monkeypatch.setattr("dgpo_cli.working.PATIENCE", threading.TIMEOUT_MAX)


@pytest.fixture
def registry() -> Registry:
    """Everything that is installed, and the toy components."""
    made = Registry()
    made.register(plugin, distribution="toy")
    return made


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A toy run under tmp_path; keywords are sections to change."""

    def make(**changes: Any) -> RunConfig:
        return RunConfig.model_validate(run_data(tmp_path, **changes))

    return make


class Gloom(BrightnessReward):
    """What brightness lacks to 1: it falls where brightness rises."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        found = super().score(media, prompts)
        return Scores(1 - found.values, found.missing, found.diagnostics)


class _GloomPlugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("gloom", "The opposite of brightness", f"{__name__}:Gloom", BrightnessOptions)]


@pytest.fixture
def gloom() -> object:
    """A plugin to register: the reward "gloom", with the options of "brightness"."""
    return _GloomPlugin()


class Film(ToyBackbone):
    """Five frames in which the toy's image wanders to the right."""

    media = "video"
    fps = 12.5

    def decode(self, x0: Tensor) -> Tensor:
        image = super().decode(x0)
        return torch.stack([image.roll(i, -1) for i in range(5)], 1)


class Glow(BrightnessReward):
    """Brightness of a video."""

    media = frozenset({"video"})

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return super().score(media.mean(1), prompts)


class _FilmPlugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [Component("film", "The toy's image moves", f"{__name__}:Film", ToyOptions)]

    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("glow", "Brightness of a video", f"{__name__}:Glow", BrightnessOptions)]


@pytest.fixture
def film() -> object:
    """A plugin to register: the backbone "film", the toy's but for its media, and the reward "glow" of videos."""
    return _FilmPlugin()


# Commands are called in process, as the shell would call them, on a registry that the test knows.


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The engine's own components, the toy's and the places of rewards, in the place of what is installed."""
    made = Registry(discover=False)
    made.register(builtin, distribution="dgpo", version="1.0")
    made.register(dgpo_cli.plugin, distribution="dgpo", version="1.0")
    made.register(dgpo_lab.plugin, distribution="dgpo-lab")
    made.register(dgpo_kit.plugin, distribution="dgpo-kit")
    made.register(plugin, distribution="toy", version="2.0")
    made.register(places, distribution="dgpo-remote", version="1.0")
    monkeypatch.setattr(registry_module, "get_registry", lambda: made)
    return made


def typed(capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command in this process, without a terminal."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def dgpo(known: Registry, capsys: pytest.CaptureFixture[str]) -> Run:
    """`dgpo("validate", path)`."""
    return typed(capsys)
