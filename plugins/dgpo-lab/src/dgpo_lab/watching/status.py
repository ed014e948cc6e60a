"""The state of a run now: whether it is running, how far it is, how fast, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dgpo_core.config.migration.earlier import check_run
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.storage.locking import holder_alive
from dgpo_core.system.reading import read_file
from dgpo_lab.watching.tailing import last_records, number
from dgpo_schemas.metrics import OutcomeRecord
from dgpo_schemas.problems import ConfigError

__all__ = ["IN_PROGRESS", "LOGS", "Described", "Status", "describe", "seconds_each", "status"]

State = Literal["starting", "running", "stalled", "finished", "paused", "interrupted", "failed", "killed", "broken"]
"""stalled: no new line for long; paused: ended by a limit of one process; killed: ended without outcome.json; broken:
its configuration or its logs cannot be read."""

IN_PROGRESS = ("starting", "running", "stalled")

LOGS = ("metrics.jsonl", "timings.jsonl", "evaluations.jsonl")
PATIENCE = 300.0
"""Minimum seconds without a new line after which a run counts as stalled."""
TIMES = 5
"""A run is stalled after this many times the longest of its recent iterations, if that is more."""
RECENT = 50
"""Maximum number of iterations over which speed is averaged."""


@dataclass(frozen=True, slots=True)
class Described:
    """The settings of a run that the page shows. fault: why config.yaml cannot be read; then the others are unknown."""

    name: str = ""
    iterations: int | None = None
    samples_per_iteration: int | None = None
    may_stop_earlier: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run.

    quiet: seconds since the last line of a log; seconds: mean duration of recent iterations with their evaluations and
    checkpoints; eta: seconds until the last iteration; rate: samples per second of rollouts, scoring and optimization
    together; memory: peak in bytes; reward, score: the latest training reward and held-out score. None: unknown.
    """

    state: State
    iteration: int
    iterations: int | None
    quiet: float | None
    seconds: float | None
    eta: float | None
    rate: float | None
    memory: float | None
    reward: float | None
    score: float | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class _Summary:
    """What the ends of the logs say. seconds, working: mean duration of an iteration with and without evaluations."""

    iteration: int
    seconds: float | None
    working: float | None
    longest: float
    memory: float | None
    reward: float | None
    score: float | None


def describe(run: Path) -> Described:
    """Read config.yaml."""
    try:
        check_run(run)
        config = load_run_config(run / "config.yaml")
    except (UserError, ConfigError) as error:
        return Described(fault=str(error))
    limits = (config.stop.seconds, config.stop.samples, config.stop.target)
    return Described(
        config.run.name, config.run.iterations, config.rollout.groups * config.rollout.group_size,
        any(limit is not None for limit in limits),
    )  # fmt: skip


def status(run: Path, described: Described, now: float | None = None) -> Status:
    """Return the state of a run from the ends of its logs. now: seconds since the epoch."""
    logs = _summary(run, tuple(_changed(run / log) for log in LOGS))
    quiet = _quiet(run, time.time() if now is None else now)
    state = _state(run, described, logs.iteration, quiet, max(PATIENCE, TIMES * logs.longest))
    left = None if described.iterations is None else described.iterations - logs.iteration
    samples = described.samples_per_iteration
    return Status(
        state=state, iteration=logs.iteration, iterations=described.iterations, quiet=quiet, seconds=logs.seconds,
        eta=None if left is None or logs.seconds is None or state not in IN_PROGRESS else left * logs.seconds,
        rate=samples / logs.working if samples is not None and logs.working else None,
        memory=logs.memory, reward=logs.reward, score=logs.score, fault=described.fault,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _summary(run: Path, changed: tuple[object, ...]) -> _Summary:
    """Read the ends of the logs; kept until one of them changes, because a directory may have many finished runs."""
    metrics, timings, evaluations = (last_records(run / log) for log in LOGS)
    recent = timings[-RECENT:]
    reward = metrics[-1].get("reward") if metrics else None
    return _Summary(
        iteration=max((record["iteration"] for record in [*metrics, *evaluations]), default=0),
        seconds=_mean([seconds_each(record) for record in recent]),
        working=_mean([number(record.get("seconds")) for record in recent]),
        longest=max((seconds_each(record) or 0.0 for record in recent), default=0.0),
        memory=number(timings[-1].get("peak_memory_bytes")) if timings else None,
        reward=number(reward.get("mean")) if isinstance(reward, Mapping) else None,
        score=next((number(e.get("value")) for e in evaluations[::-1] if e.get("role", "target") == "target"), None),
    )


def _changed(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def seconds_each(record: Mapping[str, Any]) -> float | None:
    """Return the duration of an iteration with its evaluation and checkpoint, from a line of timings.jsonl."""
    seconds, phases = number(record.get("seconds")), record.get("phases")
    if seconds is None or not isinstance(phases, Mapping):
        return seconds
    after = (phases.get(name) for name in ("evaluate", "checkpoint"))
    return seconds + sum(number(phase.get("seconds")) or 0.0 for phase in after if isinstance(phase, Mapping))


def _state(run: Path, described: Described, iteration: int, quiet: float | None, patience: float) -> State:
    if described.fault is not None:
        return "broken"
    outcome = _outcome(run)
    if outcome is not None:
        if outcome.outcome != "finished":
            return outcome.outcome
        return "paused" if outcome.ended_by is None else "finished"
    alive = holder_alive(run)
    if alive is not True and described.iterations is not None and iteration >= described.iterations:
        return "finished"
    if alive is False:
        return "killed"
    if quiet is not None and quiet > patience:
        return "stalled"
    return "running" if iteration else "starting"


def _outcome(run: Path) -> OutcomeRecord | None:
    try:
        return OutcomeRecord.model_validate_json(read_file(run / "outcome.json"))
    except (OSError, ValueError):
        return None


def _quiet(run: Path, now: float) -> float | None:
    """Return the seconds since a log was written, or the configuration if there are no logs."""
    times = []
    for name in (*LOGS, "config.yaml"):
        try:
            times.append((run / name).stat().st_mtime)
        except OSError:
            continue
    return max(0.0, now - max(times)) if times else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
