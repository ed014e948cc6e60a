"""A run's directory: who uses it, what it contains, what explains it.

runs/NAME/config.yaml        the resolved configuration
          run.json           versions of every plugin and library, git state, digests of the prompts
          metrics.jsonl      one line an iteration: what was computed, identical after a resume
          timings.jsonl      one line an iteration: what it cost
          evaluations.jsonl  one line an evaluation and reward
          checkpoints/       see `checkpoint`
          pictures/000010/   pictures of the evaluation after iteration 10, the same noise each time
          scores/000010.json its scores prompt by prompt
          outcome.json       how the run ended; absent while it goes on and after it was killed
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dgpo_core.checkpoint import Checkpoints
from dgpo_core.config import differing_keys, load_run_config
from dgpo_core.errors import UserError
from dgpo_core.files import append_json, keep_json_lines, read_json_lines, recover, why_not_writable, write_text
from dgpo_schemas.loading import dump_yaml
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.registry import Registry
    from dgpo_schemas.metrics import OutcomeRecord, PromptScores

__all__ = ["OUTCOME", "RunDirectory", "read_config"]

LOGS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "metrics.jsonl": {},
    "timings.jsonl": {"seconds": (int, float)},
    "evaluations.jsonl": {"reward": (str,), "value": (int, float)},
}
"""The logs, and what a run that goes on must find in their records, besides the iteration."""
OUTCOME = "outcome.json"
LIBRARIES = ("dgpo", "torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "pluggy", "safetensors")


class RunDirectory:
    """One run's directory, held by one process at a time."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep)
        self._lock: IO[bytes] | None = None

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    def claim(self, config: RunConfig, *, resume: bool, make: bool, registry: Registry | None = None) -> None:
        """Lock the directory for a run; refuse to continue one by accident, or with another configuration.

        A directory that is not there yet is only looked at, unless `make` is set. registry: to know the defaults of
        options that plugins did not have yet when the run started. Raises UserError.
        """
        if resume and not self.config_path.exists():
            raise UserError(f"{self.path}: nothing to resume here; start the run without --resume")
        self.check_writable()
        if make or self.path.exists():
            self.acquire()
        saved = self.checkpoints.paths()
        if resume and not saved:
            raise UserError(f"{self.path}: no checkpoint to resume from; start the run without --resume")
        if saved and not resume:
            raise UserError(
                f"{self.path} already holds a run (saved after iteration {int(saved[-1].name)}): continue it "
                "with --resume, or choose another run.name"
            )
        logged = self.path / "metrics.jsonl"
        if not saved and logged.is_file() and logged.stat().st_size:
            raise UserError(
                f"{self.path} holds the logs of a run but no checkpoint of it; a new run would overwrite them: choose "
                "another run.name, or move the directory"
            )
        if resume:
            saved_as = (read_config(self.path), *_with_defaults(self.path, registry))
            differing = min((differing_keys(one, config) for one in saved_as), key=len)
            if differing:
                raise UserError(
                    f"{self.path}: cannot resume with another configuration; these differ:\n  " + "\n  ".join(differing)
                )

    def check_writable(self) -> None:
        """Raise UserError if the directory cannot be made or written. Writes nothing."""
        reason = why_not_writable(self.path)
        if reason is not None:
            raise UserError(f"run.output: cannot write to {self.path}: {reason}")

    def acquire(self) -> None:
        """Make the directory, lock it, and tidy up after a process that was killed; the lock goes with the process,
        however that ends.

        Raises UserError if it cannot be written or another process uses it.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"run.output: cannot write to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().decode(errors="replace").strip() or "unknown"
            lock.close()
            raise UserError(f"{self.path} is in use by another process (number {owner})") from error
        except OSError as error:  # a file system without locks
            lock.close()
            raise UserError(f"run.output: cannot lock {self.path}: {error.strerror}") from error
        try:
            lock.truncate(0)
            lock.write(b"%d\n" % os.getpid())
        except OSError as error:
            lock.close()
            raise UserError(f"run.output: cannot write to {self.path}: {error.strerror}") from error
        self._lock = lock
        for name in ("checkpoints", "pictures"):
            recover(self.path / name)

    def release(self) -> None:
        """Let others use the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def describe(self, config: RunConfig, registry: Registry, prompts: dict[str, Any]) -> None:
        """Write config.yaml and run.json: everything needed to understand and repeat the run."""
        (self.path / OUTCOME).unlink(missing_ok=True)  # what is about to go on has not ended
        data = config.model_dump(mode="json")
        write_text(self.config_path, dump_yaml(data))
        versions = {name: _version(name) for name in LIBRARIES}
        record = {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: version for name, version in versions.items() if version},
            "plugins": registry.distributions(),
            "git": _git_state(),
            "prompts": prompts,
        }
        write_text(self.path / "run.json", json.dumps(record, indent=1) + "\n")

    def check_prompts(self, prompts: Mapping[str, Any]) -> None:
        """Raise UserError if the run was started on other prompts than these (see `describe`)."""
        try:
            saved = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["prompts"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # it explains a run; a run can go on without it
        for split, found in prompts.items():
            before = saved.get(split, found)
            if before != found:
                raise UserError(
                    f"{self.path}: cannot resume on other prompts: prompts.{split} gave {before['count']} when it "
                    f"started and gives {found['count']} now, or their content differs (SHA-256 in run.json)"
                )

    def append(self, log: str, *records: dict[str, Any]) -> None:
        """More lines of a log."""
        append_json(self.path / log, *records)

    def read(self, log: str) -> list[dict[str, Any]]:
        """All lines of a log; a line cut off by a crash is left out."""
        path = self.path / log
        records = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return records

    def sound(self, log: str) -> list[dict[str, Any]]:
        """The records of a log that have what a run needs to go on; damaged ones are left out."""
        return [record for _, record in read_json_lines(self.path / log, LOGS[log])[0]]

    def write_scores(self, scores: PromptScores) -> None:
        """Scores of an evaluation, prompt by prompt; those of the same iteration are replaced."""
        path = self.path / "scores" / f"{scores.iteration:06d}.json"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path.parent}: {error.strerror}") from error
        write_text(path, scores.model_dump_json() + "\n")

    def conclude(self, outcome: OutcomeRecord) -> None:
        """Write how the run ended. A disk that cannot take it must not hide why: the state is saved elsewhere."""
        with contextlib.suppress(UserError):
            write_text(self.path / OUTCOME, outcome.model_dump_json() + "\n")

    def rewind(self, iteration: int) -> None:
        """Drop what the logs say of later iterations: they will be computed again."""
        for log, needed in LOGS.items():
            keep_json_lines(self.path / log, iteration, needed)


def _with_defaults(path: Path, registry: Registry | None) -> list[RunConfig]:
    """The saved configuration as today's plugins understand it, if they do."""
    with contextlib.suppress(UserError, ConfigError):
        return [] if registry is None else [load_run_config(path / "config.yaml", registry=registry)]
    return []


def read_config(path: Path) -> RunConfig:
    """The resolved configuration of a run directory. Raises UserError if this is none."""
    file = path / "config.yaml"
    if not path.is_dir():
        raise UserError(f"{path}: there is no such run directory")
    if not file.is_file():
        raise UserError(f"{path}: not a run directory (it has no config.yaml)")
    return load_run_config(file)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanness of the working directory's repository, if it is one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.SubprocessError):
        return None
