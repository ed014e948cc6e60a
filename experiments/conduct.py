"""Run an experiment's ablation: complete, reduced, or with another base run file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from dgpo_core.errors import UserError
from dgpo_core.system.files import write_text
from dgpo_lab.ablation.directory import State, read_plan, saved_directory
from dgpo_lab.ablation.plan import Plan
from dgpo_lab.ablation.results import results_of
from dgpo_lab.commands.ablate import ablate
from dgpo_schemas.loading import load_yaml
from experiments.catalog import Experiment
from experiments.factors import IN_A_ROW
from experiments.tuning import Search, best, search, untuned

__all__ = ["QUICK", "Conducted", "ablation_of", "derived", "run_ablation", "run_experiment"]

QUICK: Mapping[str, Any] = {
    "seeds": 2,
    "iterations": 4,
    "set": {"evaluation.every": 2, "evaluation.prompts": 40, "evaluation.images": 4},
}
"""Settings of a reduced experiment, which shows only that everything runs."""


@dataclass(frozen=True)
class Conducted:
    """A finished experiment: the plan of its ablation, and the search for its settings, if there was one."""

    plan: Plan
    search: Search | None = None


def derived(
    file: Path, output: Path, *, quick: bool, base: str | None, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return an experiment's file as data, with output directory and optional base; reduced if `quick`.

    seeds: other seeds. Their ablation has a name of its own, since seeds cannot be removed from one that has run.
    """
    data: dict[str, Any] = deepcopy(load_yaml(file).data)
    if seeds is not None:
        data["seeds"] = list(seeds)
        data["name"] += f"-seeds-{min(seeds)}-{max(seeds)}"
    data["output"] = str(output)
    if base is not None:
        data["base"] = base
        data.pop("threads", None)  # one thread per cell is a setting for CPUs
        data.pop("parallel", None)
    if quick:
        data["seeds"] = data["seeds"][: QUICK["seeds"]] if isinstance(data["seeds"], list) else QUICK["seeds"]
        data["stop"] = {**data.get("stop", {}), "iterations": QUICK["iterations"]}
        data["set"] = {**data.get("set", {}), **QUICK["set"]}
        given = [data["set"], *(own for axis in data["axes"] for own in axis.get("variants", {}).values())]
        for settings in given:
            settings.pop("run.iterations", None)
        for settings in given[1:]:
            settings.pop("evaluation.every", None)
    return data


def ablation_of(data: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ablation in an experiment's file: without the keys that only experiments know.

    targets: scores to be reached, in ascending order; times to the one in the middle are compared in tables, and a cell
    ends when it has reached the last `IN_A_ROW` times in a row. tuned: settings of variants (`tuning.best`), which are
    added to their own; `NAME untuned` is a further variant.
    """
    found = {key: value for key, value in deepcopy(dict(data)).items() if key not in ("targets", "tuning")}
    targets = data.get("targets")
    if targets:
        found["target"] = targets[len(targets) // 2]
        found["stop"] = {**found.get("stop", {}), "target": targets[-1], "in_a_row": IN_A_ROW}
    if tuned:
        own = found["axes"][0]["variants"]
        names = [name for arm in own for name in (arm, untuned(arm)) if name == arm or name in tuned]
        found["axes"][0]["variants"] = {
            name: {**own.get(name, own.get(name.removesuffix(untuned("")), {})), **tuned.get(name, {})}
            for name in names
        }
    return found


def run_ablation(data: Mapping[str, Any], output: Path, *, may_fail: bool = False) -> Plan:
    """Run `dgpo ablate` on the data, reusing finished runs of other experiments, and return the plan.

    Raises UserError if cells are unfinished, with `may_fail` other than by failure; the same command continues. Raises
    ConfigError for an invalid file.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{data['name']}.yaml"
    write_text(file, yaml.safe_dump(dict(data), sort_keys=False))
    directory = output / str(data["name"])
    others = sorted(found.parent for found in output.glob("*/plan.json") if found.parent != directory)
    with contextlib.suppress(typer.Exit):  # failed cells are reported by the command and below
        ablate(file, reuse=others)
    plan = read_plan(directory)
    states = saved_directory(plan)
    left = sum(not _over(states.state(cell), may_fail) for cell in plan.cells())
    if left:
        raise UserError(f"{data['name']}: {left} cells are not finished; the same command goes on")
    return plan


def _over(state: State, may_fail: bool) -> bool:
    return state.status == "finished" or (may_fail and state.status == "failed")


def run_experiment(
    experiment: Experiment,
    output: Path,
    *,
    quick: bool,
    base: str | None,
    known: Search | None = None,
    seeds: Sequence[int] | None = None,
) -> Conducted:
    """Run an experiment with its file's seeds or others, after its search for settings if its file has one and its
    result is not `known`."""
    data = derived(experiment.file, output, quick=quick, base=base, seeds=seeds)
    found = known
    if "tuning" in data and found is None:
        found = search(data, lambda one: results_of(run_ablation(one, output, may_fail=True)), quick=quick)
    return Conducted(run_ablation(ablation_of(data, best(found) if found else {}), output), found)
