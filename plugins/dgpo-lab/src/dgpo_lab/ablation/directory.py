"""The directory of an ablation: its plan and the state of each cell.

OUTPUT/NAME/ablation.yaml   the ablation file, as it was given
            plan.json       every variant's resolved run file, the seeds, what decides
            states.json     how the last process of each cell ended
            cells/VARIANT/seed-N/   a run directory, with its run.yaml and train.log
            results.*       written by the report
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dgpo_core.config.changes import differing_keys
from dgpo_core.config.migration.earlier import check_ablation
from dgpo_core.errors import UserError
from dgpo_core.storage.description import config_text
from dgpo_core.storage.run_directory import RunDirectory, read_outcome
from dgpo_core.system.files import new_directory, why_not_writable, write_text
from dgpo_core.system.reading import read_json, why
from dgpo_lab.ablation.plan import Cell, Plan, Variant
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.metrics import OutcomeRecord
from dgpo_schemas.run import RunConfig
from dgpo_schemas.text import clean
from dgpo_schemas.yaml_text import dump_yaml

__all__ = ["AblationDirectory", "State", "is_ablation", "outcome_of", "read_plan"]

PLAN = "plan.json"
STATES = "states.json"
Status = Literal["finished", "failed", "unfinished", "not started"]


@dataclass(frozen=True, slots=True)
class State:
    """The state of a cell; `message` is the last line of the log if it failed."""

    status: Status
    message: str = ""


def outcome_of(cell: Cell) -> OutcomeRecord | None:
    """Return how the cell's run ended; None if it is running, was killed or has not started."""
    return read_outcome(cell.path)


class AblationDirectory:
    """One ablation's directory, used by one process at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = plan.path
        self._lock = RunDirectory(self.path)  # a run's lock serves here as well
        self._states: dict[str, dict[str, str]] = {}

    @contextmanager
    def claimed(self, text: str) -> Iterator[None]:
        """Hold the directory, with the plan in it. `text` is the ablation file.

        Raises UserError if it cannot be written, is in use, or belongs to another ablation (differing keys named).
        """
        reason = why_not_writable(self.path)
        if reason is not None:
            raise UserError(f"output: cannot write to {self.path}: {reason}")
        if (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is the directory of a run; choose another `name` for the ablation")
        self._refuse_another()
        self._lock.acquire()
        try:
            self._refuse_another()  # it may have come about while this process waited
            write_text(self.path / "ablation.yaml", text)
            write_text(self.path / PLAN, json.dumps(_dump(self.plan), indent=1) + "\n")
            self._states = _read_states(self.path)
            yield
        finally:
            self._lock.release()

    def _refuse_another(self) -> None:
        """Variants and seeds may be added to what is there; nothing else may change, and nothing may be dropped."""
        if not (self.path / PLAN).is_file():
            if (self.path / "cells").exists():
                raise UserError(
                    f"{self.path} contains cells but no {PLAN}; choose another `name`, or move the directory"
                )
            return
        saved = read_plan(self.path)
        found = differences(saved, self.plan)
        if found:
            raise UserError(
                f"{self.path} contains another ablation; these settings differ:\n  " + "\n  ".join(found) + "\n"
                "choose another `name` (variants and seeds can be added to an ablation, but not changed or removed)"
            )

    def state(self, cell: Cell) -> State:
        """Of a cell, from what its run and its last process left behind."""
        outcome = outcome_of(cell)
        if outcome is not None and outcome.outcome == "finished" and outcome.ended_by is not None:
            return State("finished")
        known = self._states.get(_key(cell))
        if known is not None and known.get("status") == "failed":
            return State("failed", known.get("message", ""))
        return State("unfinished" if (cell.path / "config.yaml").exists() else "not started")

    def remember(self, cell: Cell, state: State) -> None:
        """Keep how a cell's process ended."""
        self._states[_key(cell)] = {"status": state.status, "message": state.message}
        write_text(self.path / STATES, json.dumps(self._states, indent=1) + "\n")

    def adopt(self, cell: Cell, others: Sequence[Plan]) -> Path | None:
        """Copy a finished run of another ablation that is this cell's own, seed and all; its path, or None if there is
        none. Only a run's name and output may differ, so that the copy is what training would have given."""
        if cell.path.exists():
            return None
        wanted = _bare(cell.config)
        for other in others:
            for twin in other.cells():
                same = twin.seed == cell.seed and _bare(twin.config) == wanted
                if same and AblationDirectory(other).state(twin).status == "finished":
                    with new_directory(cell.path) as aside:
                        shutil.copytree(twin.path, aside, dirs_exist_ok=True)
                        (aside / ".lock").unlink(missing_ok=True)
                        write_text(aside / "run.yaml", dump_yaml(cell.config.model_dump(mode="json")))
                        write_text(aside / "config.yaml", config_text(cell.config))
                    return twin.path
        return None

    def prepare(self, cell: Cell) -> tuple[Path, bool]:
        """Write a cell's run file; (its path, whether there is a checkpoint to resume from)."""
        try:
            cell.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {cell.path}: {why(error)}") from error
        file = cell.path / "run.yaml"
        write_text(file, dump_yaml(cell.config.model_dump(mode="json")))
        with held(cell) as run:
            resume = bool(run.checkpoints.paths())
            if not resume:
                run.set_aside()  # killed before its first checkpoint: it begins again
        return file, resume


@contextmanager
def held(cell: Cell) -> Iterator[RunDirectory]:
    """The cell's run directory, locked and tidied up. Raises UserError if a process still uses it."""
    run = RunDirectory(cell.path)
    run.acquire()
    try:
        yield run
    finally:
        run.release()


def is_ablation(path: Path) -> bool:
    """Whether a directory is that of an ablation, not of a run."""
    return (path / PLAN).is_file() and not (path / "config.yaml").is_file()


def read_plan(path: Path) -> Plan:
    """The plan of an ablation's directory. Raises UserError if it is none."""
    if not path.is_dir():
        raise UserError(f"{path}: no such ablation directory")
    check_ablation(path)
    try:
        return _plan_of(read_json(path / PLAN), path)
    except FileNotFoundError:
        raise UserError(f"{path}: not an ablation directory (it has no {PLAN})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = clean(".".join(map(str, first["loc"])))
        raise UserError(
            f"{path / PLAN}: cannot be read: {place + ': ' if place else ''}{clean(first['msg'])}; if an "
            "earlier version of dgpo wrote it, continue with that version or correct the value; else restore it from a "
            "copy"
        ) from None
    except KeyError as error:
        reason = f"it has no {error}"
    except (OSError, ValueError, TypeError) as error:
        reason = why(error)
    raise UserError(f"{path / PLAN}: cannot be read: {clean(reason)}; restore it from a copy")


def _plan_of(data: Any, path: Path) -> Plan:
    """Raises ValueError, KeyError and TypeError for what is no plan."""
    variants = []
    for one in data["variants"]:
        name, axes = one["name"], one["axes"]
        if not isinstance(name, str) or not isinstance(axes, dict):
            raise TypeError("a variant has a name and axes")
        variants.append(
            Variant(name, {axis: str(label) for axis, label in axes.items()}, RunConfig.model_validate(one["config"]))
        )
    reward, baseline = data["reward"], data["baseline"]
    if not isinstance(reward, str) or not any(variant.name == baseline for variant in variants):
        raise TypeError("reward and baseline are the names of a reward and of a variant")
    return Plan(AblationConfig.model_validate(data["ablation"]), variants, reward, baseline, path)


def saved_directory(plan: Plan) -> AblationDirectory:
    """A directory to look at, with what is known of its cells."""
    directory = AblationDirectory(plan)
    directory._states = _read_states(plan.path)
    return directory


def differences(saved: Plan, new: Plan) -> list[str]:
    """`where: saved, now new` for all that an ablation may not change once it has begun."""
    found = []
    known = {variant.name: variant for variant in new.variants}
    for variant in saved.variants:
        if variant.name not in known:
            found.append(f"axes: the variant {variant.name!r} is gone")
            continue
        before, after = variant.config, known[variant.name].config
        keys = differing_keys(before, after, ("fixed", "from there on"))
        ends = {"run.iterations": (before.run.iterations, after.run.iterations), "stop": (before.stop, after.stop)}
        keys += [
            f"{key}: {_end(one)} when it started, {_end(other)} now"
            for key, (one, other) in ends.items()
            if one != other and not any(line.startswith(f"{key}:") for line in keys)
        ]
        found += [f"variant {variant.name!r}: {line}" for line in keys]
    gone = [seed for seed in saved.ablation.seeds if seed not in new.ablation.seeds]
    if gone:
        found.append(f"seeds: {', '.join(map(str, gone))} {'is' if len(gone) == 1 else 'are'} gone")
    return found


def _bare(config: RunConfig) -> RunConfig:
    """Without what a run is called and where it lies."""
    return config.model_copy(update={"run": config.run.model_copy(update={"name": "-", "output": "-"})})


def _end(value: Any) -> str:
    if not hasattr(value, "model_dump"):
        return str(value)
    return ", ".join(f"{k} {v}" for k, v in value.model_dump(exclude_defaults=True).items()) or "not given"


def _dump(plan: Plan) -> dict[str, Any]:
    return {
        "ablation": plan.ablation.model_dump(mode="json"),
        "reward": plan.reward,
        "baseline": plan.baseline,
        "variants": [
            {"name": v.name, "axes": dict(v.axes), "config": v.config.model_dump(mode="json")} for v in plan.variants
        ],
    }


def _key(cell: Cell) -> str:
    return "/".join(cell.path.parts[-2:])


def _read_states(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = read_json(path / STATES)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        cell: {str(key): clean(str(value)) for key, value in state.items()}
        for cell, state in found.items()
        if isinstance(state, Mapping)
    }
