"""A run's directory: who uses it, what it contains, what explains it.

runs/NAME/config.yaml        the resolved configuration, its paths absolute
          run.json           versions of every plugin and library, git state, digests of prompts and base weights
          metrics.jsonl      one line an iteration: what was computed, identical after a resume
          timings.jsonl      one line an iteration: what it cost
          evaluations.jsonl  one line an evaluation and reward
          checkpoints/       see `checkpoint`
          images/000010/   images of the evaluation after iteration 10, the same noise each time
          scores/000010.json its scores prompt by prompt
          outcome.json       how the run ended; absent while it goes on and after it was killed
          before-1/          what a run left that was killed before its first checkpoint, and started over
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.config.changes import Change, changes, last_measured_otherwise, recorded, reported
from dgpo_core.config.locations import located, started_in
from dgpo_core.config.migration.earlier import check_run
from dgpo_core.errors import UserError
from dgpo_core.storage import logs
from dgpo_core.storage.checkpoint import Checkpoints, whole_manifests
from dgpo_core.storage.description import (
    CONFIG,
    RECORD,
    check_base,
    check_prompts,
    other_plugins,
    read_config,
    read_record,
    write_record,
)
from dgpo_core.storage.layout import OUTCOME, check_kinds
from dgpo_core.storage.locking import HeldError, Lock
from dgpo_core.storage.logs import LOGS
from dgpo_core.storage.store import RunStore
from dgpo_core.system.files import append_json, fsync_directory, read_json_lines, recover, why_not_writable, write_text
from dgpo_core.system.reading import LARGEST_LOG, parse_json, read_file, why
from dgpo_core.system.spelling import arguments, option
from dgpo_schemas.changes import generic, summary
from dgpo_schemas.metrics import OutcomeRecord
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig
from dgpo_schemas.text import lone_surrogate

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_schemas.metrics import PromptScores
    from dgpo_schemas.origin import BaseRecord

__all__ = ["RunDirectory", "read_config", "read_outcome"]

log = logging.getLogger(__name__)
ASIDE = "before"
"""What a killed run left goes to before-1, before-2, ... (`RunDirectory.set_aside`)."""
MOVED = {
    "backbone.checkpoint": "base",
    "backbone.revision": "base",
    "prompts.train.file": "prompts",
    "prompts.heldout.file": "prompts",
    "prompts.train.N.file": "prompts",
    "prompts.heldout.N.file": "prompts",
}
"""Settings that say where something is, and what in run.json has the digest of it: if that is the same, so is the
run."""


class RunDirectory(RunStore):
    """One run's directory, held by one process at a time."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep)
        self._lock: Lock | None = None
        self._changed: Sequence[Change] = ()  # what the claim found changed

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def claim(
        self, config: RunConfig, *, resume: bool, make: bool, registry: Registry | None = None, over: bool = False
    ) -> None:
        """Lock the directory for a run; refuse to continue one by accident, or as another one.

        A directory that is not there yet is only looked at, unless `make` is set. registry: to know the defaults of
        options that plugins did not have yet when the run started. over: a new run may begin where one was killed
        before its first checkpoint (see `set_aside`). Raises UserError.
        """
        check_kinds(self.path)
        check_run(self.path)
        if resume and not self.config_path.exists():
            if self.checkpoints.paths():
                raise UserError(
                    f"{self.path}: has checkpoints but no {CONFIG}, so nothing tells what they belong to: put it back "
                    "from a copy, or choose another run.name"
                )
            here = (
                ""
                if self.path.is_absolute()
                else (
                    f" (run.output is relative to the working directory, {Path.cwd()}; to resume a run that lies "
                    "elsewhere, give its own config.yaml)"
                )
            )
            raise UserError(
                f"{self.path}: nothing to resume here{here}; start the run without {option('resume', True)}"
            )
        self.check_writable()
        if make or self.path.exists():
            self.acquire()
        saved = self.checkpoints.paths()
        logged = self.path / "metrics.jsonl"
        logs_alone = not saved and logged.is_file() and logged.stat().st_size > 0
        if resume and not saved:
            over_again = f"over with {option('resume', 'auto')}, which sets the logs aside"
            way = over_again if logs_alone else f"the run without {option('resume', True)}"
            raise UserError(f"{self.path}: no checkpoint to resume from; start {way}")
        if saved and not resume:
            raise UserError(
                f"{self.path} already holds a run (saved after iteration {int(saved[-1].name)}): continue it "
                f"with {option('resume', True)}, or choose another run.name"
            )
        if logs_alone and not over:
            raise UserError(
                f"{self.path} holds the logs of a run but no checkpoint of it; a new run would overwrite them: choose "
                f"another run.name, or start over with {option('resume', 'auto')}, which sets the logs aside"
            )
        if resume:
            self._check_same(config, registry)

    def open(self, config: RunConfig, registry: Registry, *, resume: bool | None) -> tuple[bool, Checkpoint | None]:
        """Whether the run goes on (if `resume` is None: if it can), and from what. Raises UserError like `claim`."""
        check_run(self.path)
        found = self.resumable() if resume is None else resume
        self.claim(config, resume=found, make=False, registry=registry, over=resume is None)
        return found, self.checkpoints.newest() if found else None

    def enter(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None, *,
        resume: bool, over: bool, accept_base: bool,
    ) -> list[str]:  # fmt: skip
        """Take it for the run, and make room for the logs of a new one; notes for people. Raises UserError like `claim`
        and `check_origin`."""
        self.claim(config, resume=resume, make=True, registry=registry, over=over)
        if resume:
            return self.check_origin(prompts, base, registry, accept_base=accept_base)
        aside = self.set_aside() if over else None
        self.rewind(-1)
        return [] if aside is None else [aside]

    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from. Locks the directory if it is there, since another process may be
        about to save the first one. Raises UserError if one uses it, or if it cannot be written."""
        self.check_writable()
        if self.path.exists():
            self.acquire()
        return bool(self.checkpoints.paths())

    def set_aside(self) -> str | None:
        """Move what a run left that was killed before its first checkpoint out of the way of the one that begins here;
        a note about it, None if it left no logs."""
        if not any((self.path / log).is_file() and (self.path / log).stat().st_size for log in LOGS):
            return None
        number = next(n for n in itertools.count(1) if not (self.path / f"{ASIDE}-{n}").exists())
        aside = self.path / f"{ASIDE}-{number}"
        try:
            aside.mkdir()
            for name in (*LOGS, "images", "scores", RECORD, CONFIG, OUTCOME):
                if (self.path / name).exists():
                    (self.path / name).rename(aside / name)
            fsync_directory(self.path)
        except OSError as error:
            raise UserError(f"cannot write {aside}: {error.strerror or error}") from error
        return f"the run before was killed before its first checkpoint; its logs are in {aside}, and it starts over"

    def _check_same(self, config: RunConfig, registry: Registry | None) -> None:
        """Raise UserError, naming what differs, if that is more than a resume may change of the configuration that the
        run had until now."""
        now = located(config, registry)
        found = min(
            (
                changes(located(one, registry, started_in(one, self.path)), now, registry)
                for one in (read_config(self.path), *_with_defaults(self.path, registry))
            ),
            key=lambda some: (sum(change.effect == "fixed" for change in some), len(some)),
        )
        record = read_record(self.path) if any(generic(change.key) in MOVED for change in found) else {}
        found = [change for change in found if not record.get(MOVED.get(generic(change.key), ""))]
        refused = [str(change) for change in found if change.effect == "fixed"]
        if refused:
            raise UserError(
                f"{self.path}: cannot resume with another configuration; these differ:\n  "
                + "\n  ".join(refused)
                + f"\nput back what the run began with (it is in {self.config_path}), or give another run.name for a "
                f"new run. What a resume may change: {summary()} (docs/resume.md)"
            )
        self._changed = [change for change in found if generic(change.key) not in ("run.name", "run.output", *MOVED)]

    def check_writable(self) -> None:
        """Raise UserError if the directory cannot be made or written. Writes nothing."""
        whole = str(self.path.absolute())
        if lone_surrogate(whole) is not None:
            raise UserError(
                f"run.output: {whole!a} has bytes that are not UTF-8 in its name, which config.yaml cannot hold; "
                "rename that directory, or choose another"
            )
        reason = why_not_writable(self.path)
        if reason is not None:
            raise UserError(f"run.output: cannot write to {self.path}: {reason}")

    def acquire(self) -> None:
        """Make the directory, lock it, and tidy up after a process that was killed; the lock goes with the process,
        however that ends.

        Raises UserError if it cannot be written or another process uses it. Where there are no locks, that is logged.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock.take(self.path)
        except HeldError as error:
            raise UserError(f"{self.path} is in use by another process (number {error})") from error
        except OSError as error:
            raise UserError(f"run.output: cannot write to {self.path}: {why(error)}") from error
        if self._lock.reported is not None:
            log.warning("%s", self._lock.reported)
        try:
            for name in ("checkpoints", "images"):
                recover(self.path / name)
        except OSError as error:
            self.release()
            raise UserError(f"run.output: cannot tidy up {self.path}: {why(error)}") from error

    def release(self) -> None:
        """Let others use the directory."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def describe(
        self,
        config: RunConfig,
        registry: Registry,
        prompts: Mapping[str, Any],
        base: BaseRecord | None,
        times: Mapping[str, Any],
        *,
        start: Mapping[str, Any] | None = None,
        resumed: int | None = None,
    ) -> str | None:
        """Write run.json and config.yaml: everything needed to understand and repeat the run.

        times: `Times.record`; start: `Start.record`; resumed: iterations after which it goes on; None for a new run.
        Returns a line about the settings that this resume changed, if any.
        """
        try:
            (self.path / OUTCOME).unlink(missing_ok=True)  # what is about to go on has not ended
        except OSError as error:
            raise UserError(f"cannot remove {self.path / OUTCOME}: {why(error)}") from error
        after = [] if resumed is None else self.changes(resumed)
        start = start if resumed is None else read_record(self.path).get("start")
        write_record(self.path, config, registry, prompts, base, times, after, start)
        return None if resumed is None else reported(self._changed, resumed)

    def changes(self, iteration: int) -> list[dict[str, Any]]:
        """What resumes have changed in run.json, this one included, which goes on after so many iterations."""
        return recorded(read_record(self.path).get("changes"), self._changed, iteration)

    def check_origin(
        self, prompts: Mapping[str, Any], base: BaseRecord | None, registry: Registry, *, accept_base: bool
    ) -> list[str]:
        """What people should know about what the run goes on with. Raises UserError if that is other prompts than it
        began with, or another base model, unless that is accepted."""
        check_prompts(self.path, prompts)
        note = check_base(self.path, base, accept=accept_base)
        other = other_plugins(self.path, registry)
        notes = [] if note is None else [note]
        return notes + ([f"other plugins than when the run was started: {'; '.join(other)}"] if other else [])

    def append(self, log: str, *records: dict[str, Any]) -> None:
        """More lines of a log."""
        append_json(self.path / log, *records)

    def read(self, log: str) -> list[Any]:
        """What each line of a log says; None for one that says nothing. A last line that a crash cut off is left out.

        Raises UserError for a log that cannot be read.
        """
        try:
            raw = read_file(self.path / log, LARGEST_LOG)
            *lines, last = raw.split(b"\n")
            records = [_parsed(line) for line in lines]
            if isinstance(whole := _parsed(last), dict):
                records.append(whole)
            if all(record is None for record in records):
                raw.decode()  # a few bad bytes are a line that is left out; this is another kind of file
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / log}: cannot be read: {why(error)}") from error
        return records

    def sound(self, log: str) -> list[dict[str, Any]]:
        """The records of a log that have what a run needs to go on; damaged ones are left out."""
        return [record for _, record in read_json_lines(self.path / log, LOGS[log])[0]]

    def save(self, *, trained_seconds: float, **state: Any) -> None:
        """Write a checkpoint that vouches for the logs as they are now (`Checkpoints.save`)."""
        self.checkpoints.save(logs=logs.entries(self.path), clock=logs.clock(self.path, trained_seconds), **state)

    def prune(self, best: tuple[int, float] | None, spare: int | None) -> None:
        """Drop old checkpoints (`Checkpoints.prune`)."""
        self.checkpoints.prune(best, spare)

    def set_clock(self, iteration: int, trained_seconds: float) -> None:
        """Have the checkpoint of an iteration vouch for timings.jsonl as it is now."""
        self.checkpoints.set_clock(iteration, logs.clock(self.path, trained_seconds))

    def checkpoint_paths(self) -> list[Path]:
        """Directories of the checkpoints, oldest first."""
        return self.checkpoints.paths()

    def write_scores(self, scores: PromptScores) -> None:
        """Scores of an evaluation, prompt by prompt; those of the same iteration are replaced."""
        path = self.path / "scores" / f"{scores.iteration:06d}.json"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path.parent}: {why(error)}") from error
        write_text(path, scores.model_dump_json() + "\n")

    def conclude(self, outcome: OutcomeRecord) -> None:
        """Write how the run ended. A disk that cannot take it must not hide why: the state is saved elsewhere."""
        with contextlib.suppress(UserError):
            write_text(self.path / OUTCOME, outcome.model_dump_json() + "\n")

    def rewind(self, iteration: int) -> None:
        """Drop what the logs say of later iterations: they will be computed again."""
        logs.rewind(self.path, iteration, {})

    def recall(self, checkpoint: Checkpoint, *, accept_damage: bool) -> tuple[dict[str, Any], list[str]]:
        """Take the logs back to a checkpoint: what they and run.json say, for `RunState.restore`, and notes for people.
        Raises UserError for logs that are not as they were when it was saved, unless that is accepted."""
        manifest, clock = checkpoint.manifest, checkpoint.clock
        others = [one for one in whole_manifests(self.checkpoints.directory) if one[0].iteration < manifest.iteration]
        found = logs.damages(self.path, [(manifest, clock), *others])
        if found and not accept_damage:
            raise UserError(
                "\n".join(map(str, found))
                + "\nput the log back from a copy, or go on with what can be read of it: "
                + arguments(resume=True, accept="logs")
            )
        damaged = {damage.path.name for damage in found}
        whole = logs.vouched(manifest, clock)
        logs.rewind(self.path, manifest.iteration, {n: entry for n, entry in whole.items() if n not in damaged})
        notes = [f"{damage}; accepted" for damage in found]
        changed = self.changes(manifest.iteration)
        memory = {
            "seconds": clock.trained_seconds,
            "evaluations": self.sound("evaluations.jsonl"),
            "otherwise": last_measured_otherwise(changed),
            "monitors_changed": last_measured_otherwise(changed, monitors=True),
        }
        if self.checkpoints.set_aside_after(manifest.iteration):
            notes.append(f"the newest checkpoint is damaged; continuing from iteration {manifest.iteration}")
        return memory, notes


def read_outcome(path: Path) -> OutcomeRecord | None:
    """How the run in `path` ended; None while it goes on, after it was killed, and if its outcome.json says nothing."""
    try:
        return OutcomeRecord.model_validate_json(read_file(path / OUTCOME))
    except (OSError, ValueError):
        return None


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _with_defaults(path: Path, registry: Registry | None) -> list[RunConfig]:
    """The saved configuration as today's plugins understand it, if they do."""
    with contextlib.suppress(UserError, ConfigError):
        return [] if registry is None else [read_config(path, registry)]
    return []
