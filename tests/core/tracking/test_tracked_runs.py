"""What a training run shows to its trackers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dgpo_core.plugins.registry import Registry
from dgpo_core.tracking import several
from dgpo_core.training.tracked import grouped
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.run import RunConfig
from tests.core.tracking.recorder import Recorder

Make = Callable[..., RunConfig]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The trackers that were made, in place of wandb's."""
    monkeypatch.setitem(several.TRACKERS, "wandb", f"{Recorder.__module__}:Recorder")
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_a_resumed_run_shows_both_its_parts(
    recorders: list[Recorder], make_config: Make, registry: Registry, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "evaluation": {"every": 1, "images": 3, "prompts": 4, "at_start": True},
        "checkpoints": {"every": 1},
        "logging": {"console": False, "trackers": ["wandb"], "project": "p", "tags": ["x"]},
    }
    config = make_config(**settings)
    Trainer(config, registry).train(max_iterations=1)
    Trainer(config, registry).train(max_iterations=1, resume="auto")
    first, second = recorders
    assert first.run is not None
    assert second.run is not None
    assert (first.run.key, first.run.iteration, second.run.iteration) == (second.run.key, 0, 1)
    assert (first.run.name, first.run.project, first.run.tags) == (config.run.name, "p", ["x"])
    assert first.run.config == config.model_dump(mode="json")
    assert {"torch", "dgpo"} <= set(first.run.versions)
    assert (first.outcome, list(first.numbers), list(second.numbers)) == ("finished", [0, 1], [2])
    for name in ("reward/mean", "train/grad_norm", "time/seconds", "time/phases.rollout.seconds"):
        assert name in first.numbers[1]
    members = config.rollout.groups * config.rollout.group_size
    assert first.distributions["distributions/advantages"] == [members]
    assert [values for name, values in first.distributions.items() if "advantages" not in name] == [[members]]
    assert [(name, i, len(files)) for name, i, files in first.files] == [
        ("samples", 0, 3), ("samples", 1, 3), ("before-and-after", 1, 1),
    ]  # fmt: skip
    (_, _, (sheet,)) = second.files[-1]
    assert sheet.caption == "each pair: left after 0 iterations, right after 2"
    with Image.open(sheet.image) as image, Image.open(second.files[0][2][0].image) as one:
        assert image.width == 4 * one.width + 3 * 4, "two pairs in a row"
    name, iteration, table = first.tables[0]
    assert (name, iteration, table.columns[:4]) == ("evaluation/tasks", 0, ("reward", "role", "task", "score"))
    assert next(row[2] for row in table.rows if row[1] == "target") == "all"
    assert not list((tmp_path).rglob("wandb"))


def test_numbers_are_grouped() -> None:
    assert grouped({"reward.mean": 1.0, "kl": 2.0, "sources.a.reward.mean": 3.0}) == {
        "reward/mean": 1.0, "train/kl": 2.0, "sources/a.reward.mean": 3.0,
    }  # fmt: skip


def test_samples_that_cannot_be_shown_stop_nothing(
    recorders: list[Recorder],
    make_config: Make,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lost(directory: object) -> None:
        raise FileNotFoundError("somebody has deleted them")

    monkeypatch.setattr("dgpo_core.training.tracked._files", lost)
    config = make_config(
        evaluation={"every": 1, "images": 3, "prompts": 4, "at_start": True},
        logging={"console": False, "trackers": ["wandb"]},
    )
    assert Trainer(config, registry).train(max_iterations=1) == "finished"
    assert "logging.trackers: the samples cannot be shown: FileNotFoundError: somebody has deleted them" in caplog.text
    (recorder,) = recorders
    assert (recorder.files, list(recorder.numbers), recorder.outcome) == ([], [0, 1], "finished")
