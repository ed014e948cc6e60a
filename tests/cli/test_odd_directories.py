"""Run and ablation directories in which something else lies where a file or a directory should: one sentence, or the
documented fallback; never a traceback, and never a wait."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import Checkpoints
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import run_data
from dgpo_lab.ablation.directory import AblationDirectory, State, saved_directory
from dgpo_lab.ablation.plan import Plan, make_plan
from dgpo_lab.doctoring.diagnosis import diagnose
from dgpo_lab.doctoring.facts import read_facts
from dgpo_lab.reporting.data import read_run
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig
from dgpo_schemas.yaml_text import dump_yaml

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """What waits for a FIFO waits for ever."""

    def late(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


TERMINAL = os.openpty()[1]
"""A device that nothing can be done to."""


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


TYPED = (
    '{"iteration": 2, "seconds": "x", "rewards": [1], "phases": 3, "reward": {"mean": "a"}, "value": "x", "prompts": 7,'
    ' "outcome": [], "versions": [1], "plugins": "x", "command": 3, "git": 4, "groups": [1], "base": [], "extra": []}\n'
)
BEYOND = (
    '{"iteration": 999999999, "seconds": 1e308, "value": 1e308, "reward": "r", "low": -1e308, "high": 1e308}\n'
    f'{{"iteration": 1{"0" * 400}, "seconds": 1, "value": 1, "reward": "r"}}\n'
    '{"iteration": 3, "value": 1, "reward": "r", "missing": 1e999}\n'
)
KINDS: dict[str, Callable[[Path], object]] = {
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000 + "\n"),
    "deep objects": lambda path: path.write_text('{"iteration": 1, "a": ' * 900 + "1" + "}" * 900 + "\n"),
    "typed": lambda path: path.write_text(TYPED),
    "beyond": lambda path: path.write_text(BEYOND),
    "number": lambda path: path.write_text("9" * 5000 + "\n"),
    "half a character": lambda path: path.write_text('{"iteration": 1, "reward": "\\ud800", "value": 1}\n'),
    "empty": lambda path: path.touch(),
    "NULs": lambda path: path.write_bytes(b"\0" * 4096),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x80\n" * 3),
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "directory": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
    "socket": _socket,
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to(os.ttyname(TERMINAL)),
}


def put(path: Path, kind: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    KINDS[kind](path)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


READ = (
    "config.yaml", "run.json", "metrics.jsonl", "evaluations.jsonl", "timings.jsonl", "outcome.json", ".lock",
    "checkpoints", "checkpoints/000004/manifest.json", "checkpoints/000004/clock.json", "images", "scores",
    "images/000004/prompts.json", "images/000004/00.png",
)  # fmt: skip


def said(work: Callable[[], object]) -> str | None:
    """What is refused, in words; None if it is not."""
    try:
        work()
    except (UserError, ConfigError) as error:
        return str(error)
    return None


FEW = ("deep", "typed", "beyond", "FIFO")


@pytest.mark.parametrize("kind", [k if k in FEW else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_whatever_lies_there_logs_are_read_or_refused(kind: str, trained: Any, registry: Registry) -> None:
    whole = trained.path.rename("whole")
    for name in READ:
        shutil.copytree(whole, trained.path)
        put(trained.path / name, kind)
        found = said(lambda: diagnose(read_facts(trained.path, registry)))
        assert found is None or name in found or "nothing is logged yet" in found or "not a run directory" in found
        shutil.rmtree(trained.path)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "checkpoints", "checkpoints/000004/manifest.json"])
@pytest.mark.parametrize("kind", ["deep", "typed", "directory", "FIFO", "loop", "device"])
def test_a_resume_goes_on_or_says_why_not(name: str, kind: str, trained: Any, registry: Registry) -> None:
    """In words that name the file; and then it has touched nothing."""
    put(trained.path / name, kind)
    before = tree(trained.path / "checkpoints")
    config = RunConfig.model_validate(run_data(
        trained.path.parent.absolute(), run={"iterations": 4}, optimizer={"learning_rate": 0.05},
        objective={"ema": {"every": 1}}, evaluation={"every": 1, "prompts": 6, "samples_per_prompt": 2},
        checkpoints={"every": 1, "keep": 9},
    ))  # fmt: skip
    found = said(lambda: Trainer(config, registry).train(resume=True))
    if found is None:
        assert name == "checkpoints/000004/manifest.json" or (name, kind) == ("run.json", "typed")
        return
    assert name in found or "no checkpoint to resume from" in found
    assert tree(trained.path / "checkpoints") == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("checkpoints", "empty", "checkpoints: is a file, not the directory of a run; move it away"),
        ("scores", "FIFO", "scores: is a FIFO, not the directory of a run; move it away"),
        ("metrics.jsonl", "directory", "metrics.jsonl: is a directory, not the file of a run; move it away"),
        ("outcome.json", "directory", "outcome.json: is a directory, not the file of a run; move it away"),
        ("evaluations.jsonl", "device", "evaluations.jsonl: is a device, not the file of a run; move it away"),
        ("timings.jsonl", "dangling link", "timings.jsonl: is a broken symbolic link; remove it"),
        ("images", "loop", "images: cannot be used: Too many levels of symbolic links"),
        (".lock", "directory", "cannot write to .*: Is a directory"),
    ],
)
def test_a_new_run_is_refused_before_there_is_something_to_lose(
    name: str, kind: str, message: str, make_config: Callable[..., RunConfig], registry: Registry
) -> None:
    config = make_config()
    directory = Path(config.run.output) / config.run.name
    directory.mkdir(parents=True)
    KINDS[kind](directory / name)
    with pytest.raises(UserError, match=message):
        Trainer(config, registry).train()
    assert {path.name for path in directory.iterdir()} - {".lock"} <= {name}


def test_a_name_that_is_not_utf8(tmp_path: Path, registry: Registry, trained: Any) -> None:
    odd = tmp_path / os.fsdecode(b"a\xff")
    with pytest.raises(UserError, match=r"run\.output: .*has bytes that are not UTF-8"):
        RunDirectory(odd / "toy").check_writable()
    odd.mkdir()
    trained.path.rename(odd / "toy")
    assert read_run(odd / "toy", registry).done == 4
    assert Checkpoints(odd / "toy/checkpoints").newest().manifest.iteration == 4


# -- checkpoints ----------------------------------------------------------------------------------------------------

ODD = (
    "000010 copy", "latest", ".DS_Store", "._000010", "00001O", "9" * 5000, "10", "0000010", "٠٠٠٠١٠", "１２", "-00001",
    "000009.bak", "²",
)  # fmt: skip


def test_odd_names_among_the_checkpoints_are_none(trained: Any, dgpo: Run) -> None:
    checkpoints = trained.path / "checkpoints"
    for name in ODD:
        if len(name) < 255:
            (checkpoints / name).mkdir()
    (checkpoints / "000011").write_text("a file")
    found = Checkpoints(checkpoints)
    assert [path.name for path in found.paths()] == [f"{i:06d}" for i in range(5)]
    assert found.newest().manifest.iteration == 4
    for which in ("9" * 5000, "²", "١", "-1", "", "000010 copy", "\x1b[2J"):
        done = dgpo("evaluate", trained.path, "--checkpoint", which)
        assert done.code == 2
        assert "there are newest, best and iterations 0, 1, 2, 3, 4" in done.err
        assert "\x1b" not in done.err
        assert len(done.err) < 300


def test_only_odd_names(trained: Any, dgpo: Run) -> None:
    checkpoints = trained.path / "checkpoints"
    for path in sorted(checkpoints.iterdir()):
        path.rename(path.with_name(f"{path.name} copy"))
    done = dgpo("evaluate", trained.path)
    assert done.code == 2
    assert "contains no checkpoint (only 000000 copy, 000001 copy" in done.err


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_a_run(
    make_config: Callable[..., RunConfig], registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """As on NFS, where files that are still open keep their directory from going."""
    import dgpo_core.storage.checkpoint as module

    def busy(path: Path) -> None:
        raise UserError(f"cannot remove {path}: Device or resource busy")

    monkeypatch.setattr(module, "remove_directory", busy)
    config = make_config(checkpoints={"every": 1, "keep": 1})
    assert Trainer(config, registry).train() == "finished"
    assert "cannot delete an old checkpoint: cannot remove" in caplog.text


# -- ablations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(write_run: Run, known: Registry) -> Plan:
    """Of an ablation that has been planned, and no more."""
    write_run()
    axes = [{"key": "weighting", "values": ["abs-advantage", "best-vs-worst"]}]
    Path("a.yaml").write_text(dump_yaml({"name": "a", "base": "run.yaml", "seeds": 1, "axes": axes}))
    made = make_plan("a.yaml", known)
    with AblationDirectory(made).claimed("text"):
        pass
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_that_is_none(kind: str, plan: Plan, dgpo: Run) -> None:
    put(plan.path / "plan.json", kind)
    done = dgpo("ablate", "--report", plan.path)
    assert done.code == 2
    if kind != "dangling link":
        assert done.err.startswith(f"{plan.path}/plan.json: cannot be read: ")
        assert len(done.err.splitlines()) == 1
    put(plan.path / "plan.json", kind)
    assert dgpo("ablate", "a.yaml", "--dry-run").code == 0


@pytest.mark.parametrize("where", ["ablation", "reward", "baseline", "variants", "name", "axes", "config"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [None], {"a": []}])
def test_a_plan_of_wrong_types(where: str, value: Any, plan: Plan, dgpo: Run) -> None:
    file = plan.path / "plan.json"
    data = json.loads(file.read_text())
    (data if where in data else data["variants"][0])[where] = value
    file.write_text(json.dumps(data))
    done = dgpo("ablate", "--report", plan.path)
    if isinstance(value, {"axes": dict, "reward": str}.get(where, ())):
        return
    assert done.code == 2
    assert done.err.startswith(f"{plan.path}/plan.json: cannot be read: ")


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_none_are_no_states(kind: str, plan: Plan) -> None:
    put(plan.path / "states.json", kind)
    (cell, *_) = plan.cells()
    assert saved_directory(plan).state(cell) == State("not started")


def test_states_of_wrong_types(plan: Plan) -> None:
    (cell, *_) = plan.cells()
    key = "/".join(cell.path.parts[-2:])
    (plan.path / "states.json").write_text(json.dumps({key: {"status": "failed", "message": ["\x1b[2J"]}, "x": 3}))
    assert saved_directory(plan).state(cell) == State("failed", r"['\x1b[2J']")


# -- disks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("fsync", errno.EIO), ("replace", errno.ENOSPC),
        ("rename", errno.EROFS), ("mkdir", errno.EROFS),
    ],
)  # fmt: skip
def test_a_write_that_fails_loses_nothing_that_was_saved(
    call: str, number: int, make_config: Callable[..., RunConfig], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half way; then there is room again, and the run goes on from its newest checkpoint."""
    config = make_config(run={"iterations": 3}, checkpoints={"every": 1})
    original = getattr(os, call)

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if Path(config.run.output, config.run.name, "checkpoints", "000001").exists():
            raise OSError(number, os.strerror(number))
        return original(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(UserError, match=os.strerror(number)):
            Trainer(config, registry).train()
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert RunDirectory(run_path(config)).checkpoints.newest().manifest.iteration == 3
