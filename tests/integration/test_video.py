"""Runs that make videos: what they write, again after a resume, and without what writes mp4 files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dgpo_core.media.files import read_media
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig

NOTE = "evaluation.images: videos are written as film strips only; mp4 files require PyAV: pip install 'dgpo[video]'"


class Hears(Callback):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_message(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def films(registry: Registry, film: object) -> Registry:
    registry.register(film, distribution="film")
    return registry


def config(directory: Path, images: int = 2) -> RunConfig:
    data = run_data(
        directory,
        backbone={"use": "film"},
        rewards=[{"use": "glow"}],
        run={"iterations": 2},
        optimizer={"learning_rate": 0.05},
        objective={"ema": {"every": 1}},
        evaluation={"every": 1, "images": images},
    )
    return RunConfig.model_validate(data)


def train(directory: Path, registry: Registry, *, images: int = 2) -> Hears:
    hears = Hears()
    assert Trainer(config(directory, images), registry, callbacks=[hears]).train() == "finished"
    return hears


def images(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted((run / "toy/images").rglob("*.*"))}


def test_every_evaluation_writes_videos(films: Registry, tmp_path: Path) -> None:
    assert train(tmp_path, films).notes == []
    found = images(tmp_path)
    names = ["00.mp4", "00.png", "01.mp4", "01.png", "grid.png", "prompts.json"]
    assert list(found) == [f"toy/images/{i:06d}/{name}" for i in range(3) for name in names]
    assert read_media(tmp_path / "toy/images/000002/01.mp4").tensor.shape == (5, 3, 256, 256)
    assert found["toy/images/000000/00.mp4"] != found["toy/images/000002/00.mp4"]


def test_a_resumed_run_writes_the_same_videos(films: Registry, tmp_path: Path) -> None:
    train(tmp_path / "whole", films)
    for _ in range(2):
        trainer = Trainer(config(tmp_path / "parts"), films)
        assert trainer.train(resume=(tmp_path / "parts").exists(), max_iterations=1) == "finished"
    assert images(tmp_path / "parts") == images(tmp_path / "whole")


def test_a_run_without_pyav_goes_on_and_says_so(
    films: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "with", films)
    monkeypatch.setitem(sys.modules, "av", None)
    assert train(tmp_path / "without", films).notes == [f"warning: {NOTE}"]
    strips = {name: data for name, data in images(tmp_path / "with").items() if not name.endswith(".mp4")}
    assert images(tmp_path / "without") == strips
    assert train(tmp_path / "no images", films, images=0).notes == []
