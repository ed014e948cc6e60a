"""The run directory: locking, resume checks, logs, checkpoints and metadata.

runs/NAME/config.yaml        the resolved configuration, with absolute paths
          run.json           versions of every plugin and library, git state, digests of prompts and base weights
          metrics.jsonl      one line per iteration: results, identical after a resume
          timings.jsonl      one line per iteration: durations
          evaluations.jsonl  one line per evaluation and reward
          checkpoints/       see `checkpoint`
          images/000010/     images of the evaluation after iteration 10, from the same noise each time
          scores/000010.json its scores per prompt
          outcome.json       how the run ended; absent while it runs and after it was killed
          before-1/          files of a run that was killed before its first checkpoint and was started over
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
"""Files of a killed run are moved to before-1, before-2, ... (`RunDirectory.set_aside`)."""
MOVED = {
    "backbone.checkpoint": "base",
    "backbone.revision": "base",
    "prompts.train.file": "prompts",
    "prompts.heldout.file": "prompts",
    "prompts.train.N.file": "prompts",
    "prompts.heldout.N.file": "prompts",
}
"""Locations that may change if a digest is unchanged: setting to the key of run.json that contains the digest."""


class RunDirectory(RunStore):
    """The directory of one run, locked by one process at a time."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep)
        self._lock: Lock | None = None
        self._changed: Sequence[Change] = ()  # settings changed by this resume, set by `claim`

    @property
    def config_path(self) -> Path:
        """The path of the resolved configuration."""
        return self.path / CONFIG

    def claim(
        self, config: RunConfig, *, resume: bool, make: bool, registry: Registry | None = None, over: bool = False
    ) -> None:
        """Lock the directory for a run.

        Raises UserError if that would overwrite a run, or resume one with other settings.

        make: create the directory if it does not exist. registry: for the defaults of options that plugins did not have
        when the run started. over: allow a new run to replace one that was killed before its first checkpoint (see
        `set_aside`).
        """
        check_kinds(self.path)
        check_run(self.path)
        if resume and not self.config_path.exists():
            if self.checkpoints.paths():
                raise UserError(
                    f"{self.path}: has checkpoints but no {CONFIG}, so their configuration is unknown: restore it "
                    "from a copy, or choose another run.name"
                )
            hint = (
                ""
                if self.path.is_absolute()
                else (
                    f" (run.output is relative to the working directory, {Path.cwd()}; to resume a run elsewhere, pass "
                    "its own config.yaml)"
                )
            )
            raise UserError(
                f"{self.path}: nothing to resume here{hint}; start the run without {option('resume', True)}"
            )
        self.check_writable()
        if make or self.path.exists():
            self.acquire()
        saved = self.checkpoints.paths()
        logged = self.path / "metrics.jsonl"
        logs_alone = not saved and logged.is_file() and logged.stat().st_size > 0
        if resume and not saved:
            over_again = f"over with {option('resume', 'auto')}, which moves the logs aside"
            way = over_again if logs_alone else f"the run without {option('resume', True)}"
            raise UserError(f"{self.path}: no checkpoint to resume from; start {way}")
        if saved and not resume:
            raise UserError(
                f"{self.path} already contains a run (saved after iteration {int(saved[-1].name)}): continue it "
                f"with {option('resume', True)}, or choose another run.name"
            )
        if logs_alone and not over:
            raise UserError(
                f"{self.path} contains the logs of a run but no checkpoint; a new run would overwrite them: choose "
                f"another run.name, or start over with {option('resume', 'auto')}, which moves the logs aside"
            )
        if resume:
            self._check_same(config, registry)

    def open(self, config: RunConfig, registry: Registry, *, resume: bool | None) -> tuple[bool, Checkpoint | None]:
        """Decide whether to resume (None: if possible); return this and the checkpoint. Raises UserError."""
        check_run(self.path)
        found = self.resumable() if resume is None else resume
        self.claim(config, resume=found, make=False, registry=registry, over=resume is None)
        return found, self.checkpoints.newest() if found else None

    def enter(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None, *,
        resume: bool, over: bool, accept_base: bool,
    ) -> list[str]:  # fmt: skip
        """Claim the directory and move remains of a killed run aside. Returns notes. Raises UserError."""
        self.claim(config, resume=resume, make=True, registry=registry, over=over)
        if resume:
            return self.check_origin(prompts, base, registry, accept_base=accept_base)
        aside = self.set_aside() if over else None
        self.rewind(-1)
        return [] if aside is None else [aside]

    def resumable(self) -> bool:
        """Return whether there is a checkpoint to resume from. Raises UserError like `acquire`.

        Locks an existing directory, because another process may be about to save the first checkpoint.
        """
        self.check_writable()
        if self.path.exists():
            self.acquire()
        return bool(self.checkpoints.paths())

    def set_aside(self) -> str | None:
        """Move the files of a run that was killed before its first checkpoint aside; return a note if it had logs."""
        if not any((self.path / log).is_file() and (self.path / log).stat().st_size for log in LOGS):
            return None
        number = next(n for n in itertools.count(1) if not (self.path / f"{ASIDE}-{n}").exists())
        aside = self.path / f"{ASIDE}-{number}"
        try:
            aside.mkdir()
            for name in (*LOGS, "images", "scores", "trackers", RECORD, CONFIG, OUTCOME):
                if (self.path / name).exists():
                    (self.path / name).rename(aside / name)
            fsync_directory(self.path)
        except OSError as error:
            raise UserError(f"cannot write {aside}: {error.strerror or error}") from error
        return f"the previous run was killed before its first checkpoint; its logs are in {aside}, and it starts over"

    def _check_same(self, config: RunConfig, registry: Registry | None) -> None:
        """Raise UserError if a resume cannot change the settings that differ; else store the changes."""
        now = located(config, registry)
        found = min(
            (
                changes(located(before, registry, started_in(before, self.path)), now, registry)
                for before in (read_config(self.path), *_with_defaults(self.path, registry))
            ),
            key=lambda found: (sum(change.effect == "fixed" for change in found), len(found)),
        )
        record = read_record(self.path) if any(generic(change.key) in MOVED for change in found) else {}
        found = [change for change in found if not record.get(MOVED.get(generic(change.key), ""))]
        refused = [str(change) for change in found if change.effect == "fixed"]
        if refused:
            raise UserError(
                f"{self.path}: cannot resume with another configuration; these differ:\n  "
                + "\n  ".join(refused)
                + f"\nrestore the original values (they are in {self.config_path}), or choose another run.name for a "
                f"new run. Settings that a resume may change: {summary()} (docs/resume.md)"
            )
        self._changed = [change for change in found if generic(change.key) not in ("run.name", "run.output", *MOVED)]

    def check_writable(self) -> None:
        """Raise UserError if the directory cannot be made or written. Writes nothing."""
        path = str(self.path.absolute())
        if lone_surrogate(path) is not None:
            raise UserError(
                f"run.output: {path!a} has bytes that are not UTF-8 in its name, which config.yaml cannot contain; "
                "rename that directory, or choose another"
            )
        reason = why_not_writable(self.path)
        if reason is not None:
            raise UserError(f"run.output: cannot write to {self.path}: {reason}")

    def acquire(self) -> None:
        """Create the directory, lock it, and clean up after a killed process.

        The lock ends with the process. Logs a warning if the file system has no locks. Raises UserError if the
        directory cannot be written or another process uses it.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock.take(self.path)
        except HeldError as error:
            raise UserError(f"{self.path} is in use by another process (pid {error})") from error
        except OSError as error:
            raise UserError(f"run.output: cannot write to {self.path}: {why(error)}") from error
        if self._lock.reported is not None:
            log.warning("%s", self._lock.reported)
        try:
            for name in ("checkpoints", "images"):
                recover(self.path / name)
        except OSError as error:
            self.release()
            raise UserError(f"run.output: cannot clean up {self.path}: {why(error)}") from error

    def release(self) -> None:
        """Release the lock."""
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

        times: `Times.record`; start: `Start.record`. resumed: the iteration of the checkpoint, None for a new run.
        Returns a line about the settings that this resume changed, or None.
        """
        try:
            (self.path / OUTCOME).unlink(missing_ok=True)  # a resumed run has not ended
        except OSError as error:
            raise UserError(f"cannot remove {self.path / OUTCOME}: {why(error)}") from error
        after = [] if resumed is None else self.changes(resumed)
        start = start if resumed is None else read_record(self.path).get("start")
        write_record(self.path, config, registry, prompts, base, times, after, start)
        return None if resumed is None else reported(self._changed, resumed)

    def changes(self, iteration: int) -> list[dict[str, Any]]:
        """Return the entry `changes` of run.json, including this resume after `iteration`."""
        return recorded(read_record(self.path).get("changes"), self._changed, iteration)

    def check_origin(
        self, prompts: Mapping[str, Any], base: BaseRecord | None, registry: Registry, *, accept_base: bool
    ) -> list[str]:
        """Compare prompts, base weights and plugins with those at the start of the run. Returns notes.

        Raises UserError if the prompts differ, or the base weights unless `accept_base` is set.
        """
        check_prompts(self.path, prompts)
        note = check_base(self.path, base, accept=accept_base)
        other = other_plugins(self.path, registry)
        notes = [] if note is None else [note]
        return notes + ([f"plugins have changed since the run was started: {'; '.join(other)}"] if other else [])

    def append(self, log: str, *records: dict[str, Any]) -> None:
        """Append records to a log."""
        append_json(self.path / log, *records)

    def read(self, log: str) -> list[Any]:
        """Return the parsed lines of a log, None if damaged, without an incomplete last line. Raises UserError."""
        try:
            raw = read_file(self.path / log, LARGEST_LOG)
            *lines, last = raw.split(b"\n")
            records = [_parsed(line) for line in lines]
            if isinstance(complete := _parsed(last), dict):
                records.append(complete)
            if all(record is None for record in records):
                raw.decode()  # not a damaged log but another kind of file: raises
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / log}: cannot be read: {why(error)}") from error
        return records

    def sound(self, log: str) -> list[dict[str, Any]]:
        """Return the records of a log that have all required keys; omits damaged lines."""
        return [record for _, record in read_json_lines(self.path / log, LOGS[log])[0]]

    def save(self, *, trained_seconds: float, **state: Any) -> None:
        """Write a checkpoint with digests of the current logs (`Checkpoints.save`)."""
        self.checkpoints.save(logs=logs.entries(self.path), clock=logs.clock(self.path, trained_seconds), **state)

    def prune(self, best: tuple[int, float] | None, spare: int | None) -> None:
        """Delete old checkpoints (`Checkpoints.prune`)."""
        self.checkpoints.prune(best, spare)

    def set_clock(self, iteration: int, trained_seconds: float) -> None:
        """Update the clock of an iteration's checkpoint for the current timings.jsonl."""
        self.checkpoints.set_clock(iteration, logs.clock(self.path, trained_seconds))

    def checkpoint_paths(self) -> list[Path]:
        """Return the directories of the checkpoints, oldest first."""
        return self.checkpoints.paths()

    def write_scores(self, scores: PromptScores) -> None:
        """Write the scores of an evaluation per prompt, replacing those of the same iteration."""
        path = self.path / "scores" / f"{scores.iteration:06d}.json"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path.parent}: {why(error)}") from error
        write_text(path, scores.model_dump_json() + "\n")

    def conclude(self, outcome: OutcomeRecord) -> None:
        """Write how the run ended. Ignores write errors, which must not hide the error that ended the run."""
        with contextlib.suppress(UserError):
            write_text(self.path / OUTCOME, outcome.model_dump_json() + "\n")

    def rewind(self, iteration: int) -> None:
        """Drop the log lines of later iterations, which will be computed again."""
        logs.rewind(self.path, iteration, {})

    def recall(self, checkpoint: Checkpoint, *, accept_damage: bool) -> tuple[dict[str, Any], list[str]]:
        """Rewind the logs to a checkpoint. Returns state from logs and run.json for `RunState.restore`, and notes.

        Raises UserError if the logs do not match the checkpoint, unless `accept_damage` is set.
        """
        manifest, clock = checkpoint.manifest, checkpoint.clock
        others = [
            pair for pair in whole_manifests(self.checkpoints.directory) if pair[0].iteration < manifest.iteration
        ]
        found = logs.damages(self.path, [(manifest, clock), *others])
        if found and not accept_damage:
            raise UserError(
                "\n".join(map(str, found))
                + "\nrestore the log from a copy, or continue with the lines that can be read: "
                + arguments(resume=True, accept="logs")
            )
        damaged = {damage.path.name for damage in found}
        saved = logs.vouched(manifest, clock)
        logs.rewind(self.path, manifest.iteration, {n: entry for n, entry in saved.items() if n not in damaged})
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
    """Return how the run in `path` ended; None while it runs, after it was killed, or if outcome.json is invalid."""
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
    """Return the saved configuration with defaults of the current plugins, or nothing if they reject it."""
    with contextlib.suppress(UserError, ConfigError):
        return [] if registry is None else [read_config(path, registry)]
    return []
