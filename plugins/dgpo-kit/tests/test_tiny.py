"""`dgpo plugins tiny`: the checkpoint, the preset beside it, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry

Run = Callable[..., Any]


def make(directory: Path) -> None:
    directory.mkdir()
    (directory / "weights").write_text("numbers")
    sys.stdout.write("printed by the plugin")


def fail(directory: Path) -> None:
    raise ValueError("no numbers")


class Plugin:
    """Toys with tiny checkpoints; the toy itself has none."""

    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        kind = "dgpo_kit.toy:ToyBackbone"
        return [
            Component("small", "A toy", kind, tiny=f"{__name__}:make"),
            Component("broken", "A toy", kind, tiny=f"{__name__}:fail"),
        ]

    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("judge", "A toy", "dgpo_kit.toy:BrightnessReward", tiny=f"{__name__}:make")]


@pytest.fixture(autouse=True)
def registered(known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known.register(Plugin(), distribution="dgpo-small")
    monkeypatch.chdir(tmp_path)


def test_a_checkpoint_and_a_preset_that_uses_it(dgpo: Run, known: Registry, tmp_path: Path) -> None:
    done = dgpo("plugins", "tiny", "small", "tiny")
    assert (done.code, done.out.splitlines()) == (
        0,
        [
            "wrote tiny/, a random checkpoint of small: its output is noise",
            "wrote tiny/preset.yaml; with a run file of small:",
            "  dgpo train RUN.yaml --preset tiny/preset.yaml",
        ],
    )
    assert Path("tiny/weights").read_text() == "numbers"
    Path("run.yaml").write_text(
        "run: {name: x, iterations: 9}\nbackbone: {use: small}\nprompts: {train: t}\nrewards: []\n"
    )
    config = load_run_config(Path("run.yaml"), ["rewards=[{use: judge}]"], known, preset="tiny/preset.yaml")
    assert config.backbone.checkpoint == str(tmp_path / "tiny")
    assert (config.run.name, config.run.iterations, config.rollout.groups) == ("tiny", 2, 2)


def test_a_reward_has_no_preset(dgpo: Run) -> None:
    assert dgpo("plugins", "tiny", "judge", "tiny").out == (
        "wrote tiny/, a random checkpoint of judge: its output is noise\n"
    )
    assert [path.name for path in Path("tiny").iterdir()] == ["weights"]


def test_refused_before_anything_is_written(dgpo: Run) -> None:
    done = dgpo("plugins", "tiny", "smal", "tiny")
    assert (done.code, done.err) == (
        2,
        "NAME smal: no component with a tiny checkpoint; did you mean small? (possible: broken, judge, small)\n",
    )
    Path("tiny").mkdir()
    done = dgpo("plugins", "tiny", "small", "tiny")
    assert (done.code, done.err) == (2, "tiny: already exists; name another directory\n")
    assert "broken of dgpo-small" in dgpo("plugins", "tiny", "broken", "other").err


def test_a_declaration_that_is_no_path(known: Registry) -> None:
    class Bad:
        @hookimpl
        def dgpo_backbones(self) -> list[Component]:
            return [Component("bad", "A toy", "dgpo_kit.toy:ToyBackbone", tiny="make")]

    with pytest.raises(Exception, match=r"bad: tiny must be 'package.module:function'"):
        known.register(Bad(), distribution="dgpo-bad")
