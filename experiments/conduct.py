"""Run an experiment's ablation: complete, reduced, or with another base run file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from dgpo_core.errors import UserError
from dgpo_core.system.files import write_text
from dgpo_lab.ablation.directory import read_plan, saved_directory
from dgpo_lab.ablation.plan import Plan
from dgpo_lab.ablation.results import Results, results_of
from dgpo_lab.commands.ablate import ablate
from experiments.catalog import HERE, Experiment

__all__ = ["QUICK", "best_rates", "derived", "run_ablation", "run_experiment"]

QUICK: Mapping[str, Any] = {
    "seeds": 2,
    "iterations": 4,
    "set": {"evaluation.every": 2, "evaluation.prompts": 40, "evaluation.images": 4},
}
"""Settings of a reduced experiment, which shows only that everything runs."""


def derived(file: Path, output: Path, *, quick: bool, base: str | None, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return the ablation file as data, with output directory, optional base and learning rates by variant; reduced if
    `quick`."""
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    data["output"] = str(output)
    if base is not None:
        data["base"] = base
        data.pop("threads", None)  # one thread per cell is a setting for CPUs
        data.pop("parallel", None)
    for name, rate in rates.items():
        data["axes"][0]["variants"][name]["optimizer.learning_rate"] = rate
    if quick:
        data["seeds"] = data["seeds"][: QUICK["seeds"]] if isinstance(data["seeds"], list) else QUICK["seeds"]
        data["stop"] = {**data.get("stop", {}), "iterations": QUICK["iterations"]}
        data["set"] = {**data.get("set", {}), **QUICK["set"]}
    return data


def run_ablation(data: Mapping[str, Any], output: Path) -> Plan:
    """Run `dgpo ablate` on the data, reusing finished runs of other experiments, and return the plan.

    Raises UserError if cells are unfinished; the same command continues. Raises ConfigError for an invalid file.
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
    left = sum(states.state(cell).status != "finished" for cell in plan.cells())
    if left:
        raise UserError(f"{data['name']}: {left} cells are not finished; the same command goes on")
    return plan


def run_experiment(experiment: Experiment, output: Path, *, quick: bool, base: str | None) -> Plan:
    """Run an experiment, after its search for learning rates; return the plan of its ablation."""
    rates: dict[str, float] = {}
    if experiment.search is not None:
        search = derived(HERE / f"{experiment.search}.yaml", output, quick=quick, base=base, rates={})
        rates = best_rates(results_of(run_ablation(search, output)))
    return run_ablation(derived(experiment.file, output, quick=quick, base=base, rates=rates), output)


def best_rates(results: Results) -> dict[str, float]:
    """Return the best learning rate of each method, from a search over the axes `method` and `lr`."""
    best: dict[str, tuple[float, float]] = {}
    for variant in results.variants:
        if variant.score is not None:
            found = (variant.score.value, float(variant.axes["lr"]))
            best[variant.axes["method"]] = max(best.get(variant.axes["method"], found), found)
    return {method: rate for method, (_, rate) in best.items()}
