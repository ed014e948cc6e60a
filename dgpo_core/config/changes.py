"""Compare the configuration of a run with the one that it is resumed with."""

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
"""Maximum number of changes in a line; run.json contains all of them."""
MEASURED = ("prompts", "samples_per_prompt", "steps", "guidance", "sampler", "rewards", "model")
"""Settings of `evaluation` whose change makes its scores incomparable with earlier ones."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """A setting with its old and new JSON values; `_ABSENT` if the key is missing."""

    key: str
    was: Any
    now: Any
    effect: Effect = "fixed"
    """The effect of the change on a resumed run."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.was)} when it started, {_shown(self.now)} now"

    @property
    def brief(self) -> str:
        """A short form, for a line with several changes."""
        return f"{self.key} {_shown(self.was)} -> {_shown(self.now)}" if self.public else f"{self.key} (changed)"

    @property
    def public(self) -> bool:
        """Whether its values may be shown and recorded: a worker's environment may hold a password."""
        return ".worker.environment." not in self.key


def changes(saved: RunConfig, new: RunConfig, registry: Registry | None = None) -> list[Change]:
    """Return all settings that differ, in the order of the run file.

    With a registry, plugins declare the effects of changes to their options; otherwise these are fixed.
    """
    before, after = _flat(saved), _flat(new)
    options = {} if registry is None else _of_options(new, registry)
    found = (
        Change(key, before.get(key, _ABSENT), after.get(key, _ABSENT), effect_of(key, options))
        for key in dict.fromkeys([*before, *after])
    )
    return [change for change in found if _shown(change.was) != _shown(change.now) and not _same(change)]


def _same(change: Change) -> bool:
    """Return whether both values mean the same: an unset t_max is the model's largest time, as is 1."""
    return change.key == "timesteps.t_max" and {change.was, change.now} == {None, 1.0}


def _of_options(config: RunConfig, registry: Registry) -> dict[str, Effect]:
    """Return the effects that plugins declare for their options, by dotted keys of the run file."""
    return {
        ".".join(map(str, (*where, key))): effect
        for where, model, _ in chosen(config.model_dump(mode="json"), registry)
        for key, effect in declared(model).items()
    }


def differing_keys(saved: RunConfig, new: RunConfig, effects: Sequence[Effect] = ("fixed",)) -> list[str]:
    """Describe each setting that differs and whose change has one of `effects`; by default those a resume rejects."""
    return [str(change) for change in changes(saved, new) if change.effect in effects]


def recorded(before: object, found: Iterable[Change], iteration: int) -> list[dict[str, Any]]:
    """Return the entry `changes` of run.json for a run resumed after `iteration`.

    before: the current entry. Changes at later iterations, which are computed again, move to this iteration. A change
    that is already recorded, because a process was killed before it wrote config.yaml, is not recorded twice.
    """
    kept = [record.model_copy(update={"iteration": min(record.iteration, iteration)}) for record in records(before)]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    for change in found:
        was, now = (_json(value) if change.public else "(not shown)" for value in (change.was, change.now))
        last = next((record for record in reversed(kept) if record.key == change.key), None)
        if last is None or (last.iteration, last.was, last.now) != (iteration, was, now):
            kept.append(ChangeRecord(iteration=iteration, key=change.key, was=was, now=now, time=time))
    return [record.model_dump(mode="json") for record in kept]


def reported(found: Sequence[Change], iteration: int) -> str | None:
    """Return a line about changed settings, or None if there are none."""
    if not found:
        return None
    more = f"; and {len(found) - SHOWN} more (run.json)" if len(found) > SHOWN else ""
    shown = "; ".join(change.brief for change in found[:SHOWN])
    return f"settings changed after iteration {iteration}: {shown}{more}"


def history(record: object) -> list[str]:
    """Describe the entry `changes` of run.json, a line for each resume that changed settings."""
    resumes: dict[int, list[str]] = {}
    for change in records(record):
        resumes.setdefault(change.iteration, []).append(Change(change.key, change.was, change.now).brief)
    return [f"after iteration {iteration}: {'; '.join(briefs)}" for iteration, briefs in resumes.items()]


def last_measured_otherwise(record: object, *, monitors: bool = False) -> int:
    """Return the iteration up to which evaluations are not comparable with the current ones; -1 if all are.

    record: the entry `changes` of run.json. monitors: also consider changes to monitors.
    """
    return max((change.iteration for change in records(record) if measures(change.key, monitors=monitors)), default=-1)


def records(found: object) -> list[ChangeRecord]:
    """Parse the entry `changes` of run.json; skips invalid items, such as those of a later version."""
    known = []
    for item in found if isinstance(found, list) else ():
        with contextlib.suppress(ValidationError):
            known.append(ChangeRecord.model_validate(item))
    return known


def measures(key: str, *, monitors: bool = False) -> bool:
    """Return whether changing this setting makes evaluations, or with `monitors` their monitors, incomparable."""
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
    """Flatten a configuration to dotted keys with scalars (and empty lists and sections)."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict | list) and value:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat
