"""What differs between the configuration of a run and the one that it is resumed with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dgpo_core.config.components import chosen
from dgpo_schemas.changes import ChangeRecord, Effect, declared, effect_of
from dgpo_schemas.problems import show
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = [
    "Change",
    "changes",
    "differing_keys",
    "history",
    "last_measured_otherwise",
    "measures",
    "recorded",
    "records",
    "reported",
]

SHOWN = 8
"""Changes that a line tells of; run.json has all of them."""
MEASURED = ("prompts", "samples_per_prompt", "steps", "guidance", "sampler", "rewards", "model")
"""Settings of `evaluation` that make its scores other quantities than those before."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """A setting with two values, each as JSON has it; `_ABSENT` where the key is not there."""

    key: str
    was: Any
    now: Any
    effect: Effect = "fixed"
    """What it does to a run that goes on with it."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.was)} when it started, {_shown(self.now)} now"

    @property
    def brief(self) -> str:
        """For a line of several."""
        return f"{self.key} {_shown(self.was)} -> {_shown(self.now)}" if self.public else f"{self.key} (changed)"

    @property
    def public(self) -> bool:
        """Whether its values may be shown and recorded: a worker's environment may hold a password."""
        return ".worker.environment." not in self.key


def changes(saved: RunConfig, new: RunConfig, registry: Registry | None = None) -> list[Change]:
    """Every setting that differs, in the order of the run file. With a registry, plugins say what becomes of changes of
    their options; else these are fixed."""
    before, after = _flat(saved), _flat(new)
    options = {} if registry is None else _of_options(new, registry)
    found = (
        Change(key, before.get(key, _ABSENT), after.get(key, _ABSENT), effect_of(key, options))
        for key in dict.fromkeys([*before, *after])
    )
    return [change for change in found if _shown(change.was) != _shown(change.now) and not _same(change)]


def _same(change: Change) -> bool:
    """Whether two ways to write one thing: t_max that is not set is the largest time that the model knows, and 1 is
    none's unless it is that."""
    return change.key == "timesteps.t_max" and {change.was, change.now} == {None, 1.0}


def _of_options(config: RunConfig, registry: Registry) -> dict[str, Effect]:
    """What plugins declare of their options, by dotted keys of the run file."""
    return {
        ".".join(map(str, (*where, key))): effect
        for where, model, _ in chosen(config.model_dump(mode="json"), registry)
        for key, effect in declared(model).items()
    }


def differing_keys(saved: RunConfig, new: RunConfig, effects: Sequence[Effect] = ("fixed",)) -> list[str]:
    """`key: saved value, now new value` for each setting that differs and whose change has one of these effects; by
    default those that a resume refuses."""
    return [str(change) for change in changes(saved, new) if change.effect in effects]


def recorded(before: object, found: Iterable[Change], iteration: int) -> list[dict[str, Any]]:
    """`changes` of run.json once a run goes on after so many iterations.

    before: what it says there now. Changes of later iterations, which are computed again, hold from this one on. A
    change that is there already, because the process that wrote it was killed before it wrote config.yaml, is not
    told twice.
    """
    kept = [one.model_copy(update={"iteration": min(one.iteration, iteration)}) for one in records(before)]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    for change in found:
        was, now = (_json(value) if change.public else "(not shown)" for value in (change.was, change.now))
        last = next((one for one in reversed(kept) if one.key == change.key), None)
        if last is None or (last.iteration, last.was, last.now) != (iteration, was, now):
            kept.append(ChangeRecord(iteration=iteration, key=change.key, was=was, now=now, time=time))
    return [one.model_dump(mode="json") for one in kept]


def reported(found: Sequence[Change], iteration: int) -> str | None:
    """One line about changed settings; None if there are none."""
    if not found:
        return None
    more = f"; and {len(found) - SHOWN} more (run.json)" if len(found) > SHOWN else ""
    shown = "; ".join(change.brief for change in found[:SHOWN])
    return f"settings changed after iteration {iteration}: {shown}{more}"


def history(record: object) -> list[str]:
    """What `changes` of a run.json tells, a line for each resume that changed something."""
    resumes: dict[int, list[str]] = {}
    for one in records(record):
        resumes.setdefault(one.iteration, []).append(Change(one.key, one.was, one.now).brief)
    return [f"after iteration {iteration}: {'; '.join(briefs)}" for iteration, briefs in resumes.items()]


def last_measured_otherwise(record: object, *, monitors: bool = False) -> int:
    """The iteration up to which evaluations measured something else than now, by `changes` of run.json; -1 if they
    always measured the same. monitors: something else or other monitors."""
    return max((one.iteration for one in records(record) if measures(one.key, monitors=monitors)), default=-1)


def records(found: object) -> list[ChangeRecord]:
    """What `changes` of a run.json tells; what makes no sense is left out, as a later version's may."""
    known = []
    for one in found if isinstance(found, list) else ():
        with contextlib.suppress(ValidationError):
            known.append(ChangeRecord.model_validate(one))
    return known


def measures(key: str, *, monitors: bool = False) -> bool:
    """Whether an evaluation with another value here is not to be compared with one before; with `monitors`, or what its
    monitors say is not."""
    if effect_of(key) == "any time":  # where a reward runs
        return False
    known = (*MEASURED, *(("many_step", "monitors.rewards") if monitors else ()))
    return any(f"{key}.".startswith(f"evaluation.{one}.") for one in known)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not given"
    return str(value) if isinstance(value, dict | list) else show(value)


def _json(value: Any) -> Any:
    return None if value is _ABSENT else value


def _flat(config: RunConfig) -> Mapping[str, Any]:
    """Dotted keys to scalars (and empty lists and sections)."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict | list) and value:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat
