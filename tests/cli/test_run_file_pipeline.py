"""The way of a run file goes in one direction: read, overlay, override, resolve, build, run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer

Run = Callable[..., Any]
Write = Callable[..., Path]
Entry = tuple[str, str]
"""A stage, and the function of it that was entered."""

STAGES = ("read", "overlay", "override", "resolve", "build", "run")
MODULES = {f"dgpo_core.config.{name}": stage for name, stage in zip(
    ("reading", "presets", "overrides", "resolve"), STAGES[:4], strict=True
)}  # fmt: skip
FUNCTIONS = {
    "dgpo_core.training.trainer.Trainer.__init__": "build",
    "dgpo_core.training.trainer.Trainer.train": "run",
}
OF_THE_RUN = "dgpo_core.storage.description.read_config"
"""Reads what a run directory says of the run that is gone on with: another file, whose own way this is not."""


class Trace:
    """Entries into the stages while it is open, in their order."""

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.entries: list[Entry] = []
        self._aside: FrameType | None = None

    def __enter__(self) -> Trace:
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)

    def _watch(self, frame: FrameType, event: str, argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "return" and frame is self._aside:
            self._aside = None
        if event != "call" or not module.startswith("dgpo_") or self._aside is not None:
            return
        name = f"{module}.{frame.f_code.co_qualname}"
        stage = MODULES.get(module) or FUNCTIONS.get(name)
        if name == OF_THE_RUN:
            self._aside = frame
        elif name == "dgpo_schemas.loading.load_yaml" and Path(frame.f_locals["path"]).resolve() == self.file:
            stage = "read"  # whoever asks for it
        if stage is not None:
            self.entries.append((stage, name))

    @property
    def stages(self) -> list[str]:
        """Each as it begins; one that comes again has been climbed back to."""
        return [stage for i, (stage, _) in enumerate(self.entries) if i == 0 or self.entries[i - 1][0] != stage]


def test_a_new_run_passes_each_stage_once(dgpo: Run, write_run: Write, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("rollout: {micro_batch: 2}\n")
    file = write_run(run={"iterations": 2})
    words = ["--preset", "small.yaml", "--set", "run.iterations=1", "--quiet"]
    with Trace(file) as trace:
        assert dgpo("train", file, *words).code == 0
    assert trace.stages == list(STAGES)
    assert sum(name.endswith("load_yaml") for _, name in trace.entries) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_so_does_a_run_that_goes_on(
    elsewhere: bool, dgpo: Run, write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a\nb\n")
    file = write_run(run={"iterations": 2}, prompts={"train": "p.txt", "heldout": "p.txt"})
    assert dgpo("train", file, "--quiet", "--max-iterations", 1).code == 0
    words = ["--resume", "--quiet", "--set", "checkpoints.keep=3"]
    if elsewhere:  # where the paths of the run file lead nowhere
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        file, words = Path("../run.yaml"), [*words, "--set", "run.output=../runs"]
    with Trace(file) as trace:
        done = dgpo("train", file, *words)
    assert done.code == 0, done.err
    assert trace.stages == ["read", "override", "resolve", "build", "run"]


@pytest.mark.parametrize(("where", "after"), [("__init__", "build"), ("train", "run")])
def test_whoever_climbs_back_is_seen(
    where: str, after: str, dgpo: Run, write_run: Write, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(run={"iterations": 1})
    whole = getattr(Trainer, where)

    def climbs(trainer: Trainer, *arguments: Any, **keywords: Any) -> Any:
        found = whole(trainer, *arguments, **keywords)
        load_run_config(file, [], known)
        return found

    monkeypatch.setattr(Trainer, where, climbs)
    with Trace(file) as trace:
        assert dgpo("train", file, "--quiet").code == 0
    climbed: Sequence[str] = trace.stages[trace.stages.index(after) + 1 :]
    assert list(climbed[:3]) == ["read", "override", "resolve"]
