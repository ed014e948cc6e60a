"""Mistakes that people make in directories of runs, resumes, and while a run goes on.

Each is answered with exit code 2 and one message on standard error that says where, what and what would be right;
nothing stands on standard output, nothing is written, and nothing that was there is lost.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import PIL.Image
import pytest
import safetensors.torch
import yaml

from dgpo_schemas.changes import summary
from tests.mistaken import World, refused

# -- the run's directory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["runs", "runs/toy"])
def test_a_file_in_the_place_of_the_directory(world: World, place: str) -> None:
    world.write(place, "notes")
    refused(world, ["train", "run.yaml"], f"run.output: cannot write to runs/toy: {world.path / place} is a file")


def test_a_directory_that_must_not_be_written(world: World) -> None:
    (world.path / "runs").mkdir()
    allowed = os.access
    world.monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "runs" and allowed(path, mode))
    refused(
        world,
        ["train", "run.yaml"],
        f"run.output: cannot write to runs/toy: no permission to write in {world.path}/runs",
    )


def test_a_file_system_that_cannot_be_written(world: World) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    world.monkeypatch.setattr(Path, "mkdir", read_only)
    refused(world, ["train", "run.yaml"], "run.output: cannot write to runs/toy: Read-only file system")


def test_a_run_that_is_there_already(world: World) -> None:
    world.train("--max-iterations", "1")
    refused(
        world,
        ["train", "run.yaml"],
        "runs/toy already contains a run (saved after iteration 1): continue it with --resume, or choose another "
        "run.name",
    )


@pytest.fixture
def occupied(world: World) -> Iterator[int]:
    """A run whose directory another process uses; the number of that process."""
    world.train("--max-iterations", "1")
    program = (
        "import fcntl, os, sys\n"
        "lock = open('runs/toy/.lock', 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.truncate(0)\n"
        "print(os.getpid(), file=lock, flush=True)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate("")


def test_a_directory_that_another_process_uses(world: World, occupied: int) -> None:
    for options in ([], ["--resume"]):
        refused(
            world,
            ["train", "run.yaml", *options],
            f"runs/toy is in use by another process (pid {occupied})",
        )
    # Looking is allowed.
    assert world.dgpo("evaluate", "runs/toy").code == 0
    assert world.dgpo("train", "run.yaml", "--set", "run.name=other", "--quiet").code == 0


# -- resuming --------------------------------------------------------------------------------------------------------


def test_resume_where_nothing_is(world: World) -> None:
    refused(
        world, ["train", "run.yaml", "--resume"],
        f"runs/toy: nothing to resume here (run.output is relative to the working directory, {Path.cwd()}; to resume a "
        "run elsewhere, pass its own config.yaml); start the run without --resume",
    )  # fmt: skip


def test_resume_without_a_checkpoint(world: World) -> None:
    world.train("--max-iterations", "1")
    shutil.rmtree(world.path / "runs/toy/checkpoints")
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        "runs/toy: no checkpoint to resume from; start over with --resume auto, which moves the logs aside",
    )


def test_resume_with_another_configuration(world: World) -> None:
    world.train("--max-iterations", "1")
    changes = ["run.seed=7", "rollout.groups=2", "objective.clip=null", "rewards.0.options.scale=2",
               "checkpoints.every=2", "run.iterations=3"]  # fmt: skip
    refused(
        world,
        ["train", "run.yaml", "--resume", *(part for change in changes for part in ("--set", change))],
        # How long it lasts and when it saves may change.
        "runs/toy: cannot resume with another configuration; these differ:\n"
        "  run.seed: 0 when it started, 7 now\n"
        "  rollout.groups: 4 when it started, 2 now\n"
        "  rewards.0.options.scale: 1.0 when it started, 2.0 now\n"
        "  objective.clip: 0.01 when it started, null now\n"
        "restore the original values (they are in runs/toy/config.yaml), or choose another run.name for a new run. "
        f"Settings that a resume may change: {summary()} (docs/resume.md)",
    )


@pytest.mark.parametrize("version", ["99", "4", '"1"', "null"])
def test_resume_with_an_unknown_format(world: World, version: str) -> None:
    """Not even with an older checkpoint that could be read: that would lose what a newer program did."""
    world.train("--max-iterations", "2")
    manifest = world.path / "runs/toy/checkpoints/000002/manifest.json"
    text = manifest.read_text()
    assert '"format_version": 3,' in text
    manifest.write_text(text.replace('"format_version": 3,', f'"format_version": {version},'))
    expected = (
        f"runs/toy/checkpoints/000002/manifest.json: unknown checkpoint format version {json.loads(version)!r}; "
        "this version of dgpo reads 3"
    )
    for arguments in (["train", "run.yaml", "--resume"], ["sample", "runs/toy"], ["evaluate", "runs/toy"],
                      ["export", "runs/toy"]):  # fmt: skip
        refused(world, arguments, expected)


def test_resume_where_every_checkpoint_is_damaged(world: World) -> None:
    world.train("--max-iterations", "1")
    paths = sorted((world.path / "runs/toy/checkpoints").iterdir())
    assert [path.name for path in paths] == ["000000", "000001"]
    for path in paths:
        (path / "weights.safetensors").write_bytes(b"")
    what = "weights.safetensors: its content differs from what was saved (SHA-256)"
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        f"all checkpoints are damaged: runs/toy/checkpoints/000001/{what}; runs/toy/checkpoints/000000/{what}",
    )


def test_resume_where_the_saved_configuration_is_damaged(world: World) -> None:
    world.train("--max-iterations", "1")
    config = world.path / "runs/toy/config.yaml"
    data = yaml.safe_load(config.read_text())
    data["rollout"]["steps"] = 0
    text = yaml.safe_dump(data, sort_keys=False)
    config.write_text(text)
    line = 1 + next(i for i, found in enumerate(text.splitlines()) if found == "  steps: 0")
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        f"runs/toy/config.yaml:{line}: rollout.steps: must be at least 1, not 0",
    )


# -- while it runs: what was saved stays, and the run can go on ------------------------------------------------------


def computed(run: Path) -> dict[str, bytes]:
    """Logs without clocks, and the last state."""
    names = ("metrics.jsonl", "evaluations.jsonl")
    last = max((run / "checkpoints").iterdir())
    return {n: (run / n).read_bytes() for n in names} | {p.name: p.read_bytes() for p in last.glob("*.safetensors")}


def test_all_rewards_missing(world: World) -> None:
    world.edit("evaluation: {prompts: 4", "evaluation: {at_start: false, prompts: 4")
    world.train("--max-iterations", "1")
    before = world.tree()
    world.monkeypatch.setattr("dgpo_kit.toy.BrightnessReward.score", lambda *_: 1 / 0)
    done = world.dgpo("train", "run.yaml", "--resume", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "100% of the scores of iteration 2 are missing (limit scoring.max_missing = 0.2); the state is saved. "
        "brightness: ZeroDivisionError: division by zero\n"
    )
    reported = ("runs/toy/run.json", "runs/toy/outcome.json")  # of the last start and its end
    assert {n: f for n, f in world.tree().items() if n not in reported} == {
        n: f for n, f in before.items() if n not in reported
    }


@pytest.mark.slow
def test_all_rewards_missing_in_a_process_of_its_own(world: World) -> None:
    """What a person sees: the reason with its place, no traceback."""
    world.edit("  - use: brightness\n", "  - {use: brightness, options: {fail: raise}}\n")
    program = (
        "from dgpo_core.plugins.registry import get_registry\n"
        "from dgpo_kit.toy import plugin\n"
        "get_registry().register(plugin, distribution='toy')\n"
        "from dgpo_cli.main import main\n"
        "main(['train', 'run.yaml', '--quiet', '--set', 'evaluation.at_start=false'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    warning, message = done.stderr.splitlines()
    reason = "brightness: RuntimeError: the lamp is broken"
    assert warning.startswith(f"warning: reward failed, 16 samples are missing: {reason} (at ")
    assert message == (
        "100% of the scores of iteration 1 are missing (limit scoring.max_missing = 0.2); the state is saved. "
        "brightness: RuntimeError: the lamp is broken"
    )


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.FileIO):
    """A file that can be made, but not filled."""

    def write(self, _: Any) -> NoReturn:
        full()


def full_for(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """There is no room for what files of this name should hold."""

    def patch(patched: pytest.MonkeyPatch) -> None:
        opened, opened_by_number, with_buffer, write = Path.open, os.open, os.fdopen, os.pwrite
        numbers: set[int] = set()

        def open_(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if self.name != name or mode[0] == "r":
                return opened(self, mode, *arguments, **keywords)
            raw = Full(self, mode.replace("b", ""))
            return raw if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")

        def number_of(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            number = opened_by_number(path, flags, *arguments, **keywords)
            numbers.discard(number)
            if os.path.basename(os.fspath(path)) == name and flags & (os.O_WRONLY | os.O_RDWR):
                numbers.add(number)
            return number

        def buffered(number: int, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if number in numbers and mode[0] != "r":
                return Full(number, mode.replace("b", ""))
            return with_buffer(number, mode, *arguments, **keywords)

        def pwrite(number: int, *arguments: Any) -> int:
            return full() if number in numbers else write(number, *arguments)

        patched.setattr(Path, "open", open_)
        for old, new in (("open", number_of), ("fdopen", buffered), ("pwrite", pwrite)):
            patched.setattr(os, old, new)

    return patch


FULL: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "tensors": (lambda p: p.setattr(safetensors.torch, "save_file", full), "runs/toy/checkpoints/000002"),
    "a manifest": (full_for("manifest.json"), "runs/toy/checkpoints/000002"),
    "a flush": (lambda p: p.setattr(os, "fsync", full), "runs/toy/timings.jsonl"),
    "an image": (lambda p: p.setattr(PIL.Image.Image, "save", full), "runs/toy/images/000002"),
    "metrics": (full_for("metrics.jsonl"), "runs/toy/metrics.jsonl"),
    "timings": (full_for("timings.jsonl"), "runs/toy/timings.jsonl"),
    "evaluations": (full_for("evaluations.jsonl"), "runs/toy/evaluations.jsonl"),
    "the configuration": (full_for(".config.yaml.writing"), "runs/toy/config.yaml"),
    "the description": (full_for(".run.json.writing"), "runs/toy/run.json"),
    "the lock": (full_for(".lock"), "runs/toy"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(world: World, what: str) -> None:
    world.train("--set", "run.name=reference")
    world.train("--max-iterations", "1")
    saved = {n: f for n, f in world.tree().items() if n.startswith("runs/toy/checkpoints/")}
    patch, place = FULL[what]
    with pytest.MonkeyPatch.context() as patched:
        patch(patched)
        done = world.dgpo("train", "run.yaml", "--resume", "--quiet")
    subject = "run.output: cannot write to" if what == "the lock" else "cannot write"
    assert (done.code, done.out, done.err) == (2, "", f"{subject} {place}: No space left on device\n")
    assert not [name for name in world.tree() if name.endswith(".writing")]
    assert saved.items() <= world.tree().items()
    # With room again it goes on, to the same end.
    world.train("--resume")
    assert computed(Path("runs/toy")) == computed(Path("runs/reference"))
