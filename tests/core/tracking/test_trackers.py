"""Experiment trackers: what each shows of a run, read back with its own library."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dgpo_core.errors import UserError
from dgpo_core.tracking import several
from dgpo_core.tracking.several import Several, run_key
from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun
from tests.core.tracking.offline_records import records

NAMES = list(several.TRACKERS)
CONFIG = {"run": {"name": "a run", "seed": 3}, "rewards": [{"use": "geneval"}], "stop": None}


def the_run(directory: Path, iteration: int = 0) -> TrackedRun:
    return TrackedRun(
        "a run", "a project", directory, "0123456789abcdef", iteration, ("first", "second"), CONFIG, {"dgpo": "1.2.3"}
    )


def pictures(directory: Path) -> list[MediaFile]:
    files = [MediaFile(directory / f"{i:02d}.png", f"picture {i}") for i in range(12)]
    for i, file in enumerate(files):
        Image.new("RGB", (6, 4), (20 * i, 0, 0)).save(file.image)
    return files


def shown(name: str, directory: Path, files: Sequence[MediaFile], iterations: Sequence[int], start: int = 0) -> None:
    """Show a run from `start`."""
    tracker = Several([name])
    tracker.start(the_run(directory, start))
    for i in iterations:
        tracker.scalars({"reward/mean": i / 2, "train/kl": 0.1 * i}, i)
        tracker.histogram("distributions/advantages", [-1.0, 0.0, 0.0, 1.0], i)
    tracker.media("samples", files, iterations[-1])
    tracker.table("evaluation/tasks", Table(["task", "score"], [["a | b", 0.25], ["c", None]]), iterations[-1])
    assert tracker, "no tracker has failed"
    tracker.finish("finished")


def test_tensorboard_shows_the_run_and_hides_what_a_resumed_one_repeats(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    shown("tensorboard", tmp_path / "t", files, [1, 2, 3])
    shown("tensorboard", tmp_path / "t", files, [3, 4], start=2)
    events = EventAccumulator(str(tmp_path / "t"), {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert len(events.Tags()["images"]) == 12
    (histogram, *_) = events.Histograms("distributions/advantages")
    assert (histogram.histogram_value.num, histogram.histogram_value.min) == (4, -1)
    text = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert '"seed": 3' in text["run/configuration/text_summary"]
    assert '"dgpo": "1.2.3"' in text["run/versions/text_summary"]
    assert "second" in text["run/tags/text_summary"]
    assert "| a \\| b | 0.25 |\n| c |  |" in text["evaluation/tasks/text_summary"]
    assert text["samples/07/text_summary"] == "picture 7"


def test_wandb_logs_offline_and_a_resumed_run_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the records that `wandb sync` would upload."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    files = pictures(tmp_path)
    shown("wandb", tmp_path / "t", files, [1, 2, 3])
    time.sleep(1.1)  # wandb names the directory of a run by its key and the second of its start
    shown("wandb", tmp_path / "t", files, [3, 4], start=2)
    assert not (tmp_path / "wandb").exists(), "its files are in the trackers' directory"
    found = records(tmp_path / "t" / "wandb", runs=2)
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert [run.run_id for run in runs] == ["0123456789abcdef"] * 2
    for run in runs:
        assert (run.display_name, run.project, list(run.tags)) == ("a run", "a project", ["first", "second"])
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["run"] == CONFIG["run"]
        assert config["rewards"] == CONFIG["rewards"]
        assert config["versions"] == {"dgpo": "1.2.3"}
    lines = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    means = [(line["iteration"], line["reward/mean"]) for line in lines if "reward/mean" in line]
    assert means == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0)]
    captions = [line["samples/captions"] for line in lines if "samples/captions" in line]
    assert captions == [[file.caption for file in files]] * 2
    assert sum(line.get("distributions/advantages/_type") == "histogram" for line in lines) == 5
    assert sum(line.get("evaluation/tasks/_type") == "table-file" for line in lines) == 2
    for run in (tmp_path / "t" / "wandb").glob("offline-run-*"):
        assert len(list(run.glob("files/media/images/samples*.png"))) == 12


def test_wandb_without_a_key_logs_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
    given: dict[str, Any] = {}
    run = SimpleNamespace(define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **settings: given.update(settings) or run)
    Several(["wandb"]).start(the_run(tmp_path))
    assert given["mode"] == "offline"
    assert "wandb has no API key and logs offline; `wandb sync --append " in caplog.text


def test_mlflow_shows_the_run_and_goes_on_in_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files = pictures(tmp_path)
    shown("mlflow", tmp_path / "t", files, [1, 2, 3])
    shown("mlflow", tmp_path / "t", files, [3, 4], start=2)
    client = MlflowClient(tracking_uri=(tmp_path / "t" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("a project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.params == {"run.name": "a run", "run.seed": "3", "rewards": '[{"use": "geneval"}]'}
    assert run.data.tags["tag.second"] == "true"
    points = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0)]
    assert run.data.metrics["distributions/advantages.q50"] == 0
    assert run.data.metrics["distributions/advantages.q00"] == -1
    artifacts = {one.path for one in client.list_artifacts(run.info.run_id, "samples/000004")}
    assert len([path for path in artifacts if path.endswith(".png")]) == 12
    assert {one.path for one in client.list_artifacts(run.info.run_id)} >= {"config.json", "versions.json"}


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=rf'^logging\.trackers: {name} is not installed: pip install "dgpo\[{name}\]"$'):
        Several([name])


class Broken:
    """Fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where, self.called = where, list[str]()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: Any) -> None:
            self.called.append(name)
            if name == self.where:
                raise ConnectionError("the server is gone")

        return call


def calls(trackers: Several, directory: Path) -> Iterator[str]:
    yield trackers.start(the_run(directory)) or "start"
    yield trackers.scalars({"x": 1.0}, 1) or "scalars"
    yield trackers.histogram("x", [1.0], 1) or "histogram"
    yield trackers.media("x", [MediaFile(directory / "x.png", "x")], 1) or "media"
    yield trackers.table("x", Table([], []), 1) or "table"
    yield trackers.finish("finished") or "finish"


@pytest.mark.parametrize("where", ["start", "scalars", "histogram", "media", "table", "finish"])
def test_one_that_fails_is_reported_once_and_the_others_go_on(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers, broken, sound = Several([]), Broken(where), Broken("nowhere")
    trackers._trackers = {"wandb": broken, "mlflow": sound}  # type: ignore[dict-item]
    order = list(calls(trackers, tmp_path))
    assert sound.called == order
    assert broken.called == order[: order.index(where) + 1]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "logging.trackers: wandb failed and is disabled, the run continues: ConnectionError: the server is gone"
    ]


def test_nothing_is_shown_of_nothing(tmp_path: Path) -> None:
    trackers, sound = Several([]), Broken("nowhere")
    trackers._trackers = {"wandb": sound}  # type: ignore[dict-item]
    trackers.histogram("x", [], 1)
    trackers.media("x", [], 1)
    assert sound.called == []


def test_a_run_keeps_its_key(tmp_path: Path) -> None:
    key = run_key(tmp_path / "a")
    assert run_key(tmp_path / "a") == key
    assert run_key(tmp_path / "b") != key
    assert len(key) == 16
    assert key.isalnum()


def test_no_tracker_leaves_no_trace(tmp_path: Path) -> None:
    seen: Mapping[str, Any] = dict.fromkeys(calls(Several([]), tmp_path))
    assert len(seen) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_before_it_starts_has_nothing_to_finish(caplog: pytest.LogCaptureFixture) -> None:
    trackers, sound = Several([]), Broken("nowhere")
    trackers._trackers = {"wandb": sound}  # type: ignore[dict-item]
    trackers.finish("failed")
    assert sound.called == []
    assert not caplog.records
