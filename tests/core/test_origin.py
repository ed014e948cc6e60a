"""What a run began with and where it is: other base weights, other plugins, damaged files, moved directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dgpo_core.config.locations import located, without_places
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import Checkpoint, load
from dgpo_core.storage.description import read_config, read_record
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data
from dgpo_schemas.base import Options
from dgpo_schemas.places import PathText
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sealing import sealed, sealed_text, text_seal

Make = Callable[..., RunConfig]


class FromDisk(ToyBackbone):
    """The toy model, whose base is a directory."""

    def base_directory(self) -> Path | None:  # type: ignore[override]
        return super(ToyBackbone, self).base_directory()


class FileOptions(Options):
    """A prompt source's option that is a path."""

    words: PathText | None = None
    count: int = 6


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [Component("from-disk", "Toy of a directory", f"{__name__}:FromDisk", ToyOptions)]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        return [Component("of-file", "Toy prompts", "dgpo_kit.toy:ToyPrompts", FileOptions)]


class Notes(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def known(registry: Registry) -> Registry:
    registry.register(_Plugin(), distribution="from-disk", version="1.0")
    return registry


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.mkdir()
    write(path)
    return path


def write(base: Path, factor: float = 1.0) -> None:
    safetensors.torch.save_file({"w": factor * torch.arange(1.0, 9.0)}, base / "model.safetensors")


@pytest.fixture
def config(base: Path, make_config: Make) -> RunConfig:
    return make_config(
        run={"iterations": 2},
        backbone={"use": "from-disk", "checkpoint": str(base)},
        evaluation={"every": 0, "model": "policy"},
    )


def train(config: RunConfig, registry: Registry, **keywords: Any) -> list[str]:
    progress = Notes()
    Trainer(config, registry, callbacks=[progress]).train(**keywords)
    return progress.said


# -- the base's weights -------------------------------------------------------------------------------------------


def test_the_base_is_recorded(config: RunConfig, known: Registry, base: Path) -> None:
    train(config, known)
    record = json.loads((run_path(config) / "run.json").read_text())["base"]
    assert record["directory"] == str(base)
    assert record["files"].keys() == {"model.safetensors"}


def test_resume_refuses_another_base_unless_it_is_accepted(config: RunConfig, known: Registry, base: Path) -> None:
    train(config, known, max_iterations=1)
    write(base, 1.5)
    before = {f: f.read_bytes() for f in run_path(config).rglob("*") if f.is_file() and f.name != "outcome.json"}
    expected = (
        f"the base weights in {base} differ from those at the start of the run in {run_path(config)}: "
        "model.safetensors has changed; put them back, or accept them with --accept base"
    )
    with pytest.raises(UserError) as refused:
        train(config, known, resume=True)
    assert str(refused.value) == expected
    assert {f: f.read_bytes() for f in before} == before
    (note,) = train(config, known, resume=True, accept=["base"])
    assert note == expected.partition(";")[0] + "; accepted"
    assert train(config, known, resume=True) == [], "from now on this is its base"


def test_the_same_base_may_lie_elsewhere(config: RunConfig, known: Registry, base: Path) -> None:
    train(config, known, max_iterations=1)
    moved = base.rename(base.with_name("moved"))
    section = {"use": "from-disk", "checkpoint": str(moved)}
    other = RunConfig.model_validate(run_data_like(config) | {"backbone": run_data_like(config)["backbone"] | section})
    assert train(other, known, resume=True) == []
    write(moved, 2.0)
    with pytest.raises(UserError, match=rf"the base weights in {moved} differ from those"):
        train(other, known, resume=True)


def run_data_like(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def test_a_run_that_knows_nothing_of_its_base_says_so(config: RunConfig, known: Registry, base: Path) -> None:
    """Of an older version."""
    train(config, known, max_iterations=1)
    path = run_path(config) / "run.json"
    record = json.loads(path.read_text())
    del record["base"], record["sha256"]
    path.write_text(json.dumps(record))
    write(base, 1.5)
    assert train(config, known, resume=True) == [f"{path} has no digests of the base weights; they are not compared"]


def test_another_version_of_a_plugin_is_named(config: RunConfig, known: Registry) -> None:
    train(config, known, max_iterations=1)
    path = run_path(config) / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(record | {"plugins": record["plugins"] | {"from-disk": "0.9", "gone": "3"}})))
    (note,) = train(config, known, resume=True)
    assert note == (
        "plugins have changed since the run was started: from-disk was 0.9 and is 1.0; gone was 3 and is not installed"
    )


# -- what explains it ---------------------------------------------------------------------------------------------


def test_a_changed_configuration_is_refused_until_it_is_said_to_be_meant(config: RunConfig, known: Registry) -> None:
    train(config, known, max_iterations=1)
    path = run_path(config) / "config.yaml"
    assert text_seal(path.read_bytes()) == "whole"
    text = path.read_text()
    path.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.03"))
    with pytest.raises(
        UserError, match=rf"^{path}: was changed since .*; or, if the change was intended, delete its first"
    ):
        read_config(run_path(config))
    with pytest.raises(UserError, match=rf"^{path}: was changed since"):
        train(config, known, resume=True)
    path.write_text(path.read_text().partition("\n")[2])
    assert read_config(run_path(config)).optimizer.learning_rate == 0.03


def test_a_cut_configuration_is_refused(tmp_path: Path, config: RunConfig) -> None:
    """It would be a valid one."""
    whole = sealed_text("a: 1\nb: 2\n")
    (tmp_path / "config.yaml").write_text(whole.removesuffix("b: 2\n"))
    with pytest.raises(UserError, match="was changed"):
        read_config(tmp_path)


@pytest.mark.parametrize("damage", [lambda text: text.replace('"count": 6', '"count": 7'), lambda text: text[:-9]])
def test_a_damaged_record_is_refused_until_it_is_gone(
    damage: Callable[[str], str], config: RunConfig, known: Registry
) -> None:
    train(config, known, max_iterations=1)
    path = run_path(config) / "run.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=rf"^{path}: was changed since the run wrote it .*, or delete it to continue"):
        train(config, known, resume=True)
    path.unlink()
    assert train(config, known, resume=True) == [
        f"{path} is missing: prompts and base weights are not compared with those at the start"
    ]
    assert "base" in read_record(run_path(config))


# -- logs ---------------------------------------------------------------------------------------------------------

LOGS = ("metrics.jsonl", "evaluations.jsonl", "timings.jsonl")


@pytest.fixture
def logged(make_config: Make, registry: Registry) -> RunConfig:
    evaluation = {"every": 1, "prompts": 2, "images": 0, "model": "policy"}
    config = make_config(run={"iterations": 4}, evaluation=evaluation)
    train(config, registry, max_iterations=3)
    return config


@pytest.mark.parametrize("log", LOGS)
def test_a_flipped_digit_in_a_log_is_refused_and_located(log: str, logged: RunConfig, registry: Registry) -> None:
    path = run_path(logged) / log
    lines = path.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines, 1) if json.loads(line)["iteration"] == 3)
    lines[number - 1] = lines[number - 1].replace('"iteration": 3', '"iteration": 2')
    path.write_text("".join(lines))
    with pytest.raises(UserError, match=rf"^{path}: line.*from what was logged by iteration 3 \(SHA-256\)\n.*--accept"):
        train(logged, registry, resume=True)
    notes = train(logged, registry, resume=True, accept=["logs"])
    assert any(note.startswith(f"{path}: line") and note.endswith("accepted") for note in notes)
    assert train(logged, registry, resume=True) == []


@pytest.mark.parametrize("log", LOGS)
def test_a_log_whose_last_line_is_gone(log: str, logged: RunConfig, registry: Registry) -> None:
    path = run_path(logged) / log
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(
        UserError, match=rf"^{path}: ends after line {len(lines) - 1}; more lines were logged by iteration 3"
    ):
        train(logged, registry, resume=True)
    path.unlink()
    with pytest.raises(UserError, match=rf"^{path}: is missing or empty; more"):
        train(logged, registry, resume=True)


def test_the_line_is_found_with_the_help_of_older_checkpoints(logged: RunConfig, registry: Registry) -> None:
    """The newest two, and the best, are kept: what the second newest vouches for is sound."""
    path = run_path(logged) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"iteration": 3', '"iteration": 7'))
    with pytest.raises(UserError, match=rf"^{path}: line 3 differs from what"):
        train(logged, registry, resume=True)


def test_lines_after_the_checkpoint_are_cut(logged: RunConfig, registry: Registry) -> None:
    """Whatever they say: a killed process may have written half of one."""
    path = run_path(logged)
    for log in LOGS:
        with (path / log).open("a") as handle:
            handle.write('{"iteration": 2, "reward": "brightness", "value": 99.0, "seconds": 99.0}\n{"iter')
    train(logged, registry, resume=True)
    records = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    assert all(record["value"] < 2 for record in records)
    assert [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_seconds_trained_are_those_of_the_clock(logged: RunConfig, registry: Registry) -> None:
    class Watched(Trainer):
        restored = 0.0

        def _restore(self, checkpoint: Checkpoint | None, *rest: Any) -> None:
            super()._restore(checkpoint, *rest)
            self.restored = self.state.trained_seconds

    clock = load(run_path(logged) / "checkpoints/000003").clock
    lines = (run_path(logged) / "timings.jsonl").read_text().splitlines()
    trainer = Watched(logged, registry)
    trainer.train(resume=True)
    assert trainer.restored == clock.trained_seconds == pytest.approx(sum(json.loads(x)["seconds"] for x in lines))


def test_an_evaluation_that_failed_after_its_checkpoint_is_vouched_for_once_it_is_made(
    logged: RunConfig, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise UserError("the lamp is broken")

    with monkeypatch.context() as patched:
        patched.setattr("dgpo_core.training.evaluation.Evaluator.evaluate", broken)
        with pytest.raises(UserError, match="lamp"):
            train(logged, registry, resume=True)
    newest = run_path(logged) / "checkpoints" / "000004"
    saved = load(newest).manifest.logs
    train(logged, registry, resume=True)
    again = load(newest).manifest.logs
    assert saved is not None
    assert again is not None
    assert again["evaluations.jsonl"].bytes == (run_path(logged) / "evaluations.jsonl").stat().st_size
    assert again["evaluations.jsonl"].bytes > saved["evaluations.jsonl"].bytes
    assert again["metrics.jsonl"] == saved["metrics.jsonl"]


# -- places -------------------------------------------------------------------------------------------------------


@pytest.fixture
def relative(tmp_path: Path, base: Path, known: Registry, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """All of whose paths are relative to tmp_path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    prompts = {"train": {"file": "p.txt"}, "heldout": {"use": "of-file", "options": {"words": "words.txt", "count": 2}}}
    worker = [{"use": "brightness"}]
    return RunConfig.model_validate(
        run_data(
            "runs", run={"iterations": 2}, backbone={"use": "from-disk", "checkpoint": "base"}, prompts=prompts,
            rewards=worker, evaluation={"every": 0, "model": "policy"},
        )
    )  # fmt: skip


def test_a_run_records_absolute_paths(relative: RunConfig, known: Registry, tmp_path: Path) -> None:
    train(relative, known, max_iterations=1)
    saved = read_config(tmp_path / "runs/toy")
    assert (saved.run.output, saved.backbone.checkpoint) == (f"{tmp_path}/runs", f"{tmp_path}/base")
    assert saved.prompts.train.file == f"{tmp_path}/p.txt"
    assert saved.prompts.heldout is not None
    assert saved.prompts.heldout.options["words"] == f"{tmp_path}/words.txt"
    assert train(relative, known, resume=True) == []


def test_a_moved_run_goes_on(
    relative: RunConfig, known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, under another name, by its own configuration."""
    train(relative, known, max_iterations=1)
    place = tmp_path / "archive"
    place.mkdir()
    shutil.move(tmp_path / "runs" / "toy", place / "first")
    monkeypatch.chdir(place)
    saved = read_config(place / "first")
    moved = saved.model_copy(update={"run": saved.run.model_copy(update={"output": str(place), "name": "first"})})
    assert train(moved, known, resume=True) == []
    assert load(place / "first" / "checkpoints/000002").manifest.iteration == 2


def test_a_run_of_an_older_version_with_relative_paths_goes_on(
    relative: RunConfig, known: Registry, tmp_path: Path
) -> None:
    train(relative, known, max_iterations=1)
    file = tmp_path / "runs/toy/config.yaml"
    file.write_text(file.read_text().partition("\n")[2].replace(f"{tmp_path}/", ""))
    assert read_config(tmp_path / "runs/toy").backbone.checkpoint == "base"
    assert train(relative, known, resume=True) == []


def test_names_stay_names(
    make_config: Make, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = {"use": "brightness", "worker": {"python": "python3"}}
    for checkpoint in ("owner/name", "package:dgpo_miniature/checkpoint", "toy"):
        config = make_config(backbone={"checkpoint": checkpoint}, rewards=[worker])
        assert located(config, registry) == config


def test_processes_may_have_their_files_in_other_places(make_config: Make, registry: Registry) -> None:
    one, other = (make_config(backbone={"checkpoint": f"/{place}/base"}) for place in ("a", "b"))
    assert without_places(one, registry) == without_places(other, registry)
    third = make_config(backbone={"checkpoint": "/a/base"}, rollout={"groups": 2})
    assert without_places(third, registry) != without_places(one, registry)
