"""Running an experiment's ablation: the file as it is, a reduced set of it, or on another base run."""

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
"""The reduced set: whether everything runs, not what comes out."""


def derived(file: Path, output: Path, *, quick: bool, base: str | None, rates: Mapping[str, float]) -> dict[str, Any]:
    """An ablation file as data, written below `output`, cut down if `quick`, on another `base` if one is given, with
    the learning rate of each variant that `rates` names."""
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    data["output"] = str(output)
    if base is not None:
        data["base"] = base
        data.pop("threads", None)  # one thread a cell is for CPUs
        data.pop("parallel", None)
    for name, rate in rates.items():
        data["axes"][0]["variants"][name]["optimizer.learning_rate"] = rate
    if quick:
        data["seeds"] = data["seeds"][:1] if isinstance(data["seeds"], list) else QUICK["seeds"]
        data["stop"] = {**data.get("stop", {}), "iterations": QUICK["iterations"]}
        data["set"] = {**data.get("set", {}), **QUICK["set"]}
    return data


def run_ablation(data: Mapping[str, Any], output: Path) -> Plan:
    """Run `dgpo ablate` on it, taking over what other experiments have finished; its plan.

    Raises UserError if a cell is left: what is finished stays, and the same command goes on. Raises ConfigError for a
    mistake in a file.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{data['name']}.yaml"
    write_text(file, yaml.safe_dump(dict(data), sort_keys=False))
    directory = output / str(data["name"])
    others = sorted(found.parent for found in output.glob("*/plan.json") if found.parent != directory)
    with contextlib.suppress(typer.Exit):  # failed cells are told of, here and below
        ablate(file, reuse=others)
    plan = read_plan(directory)
    states = saved_directory(plan)
    left = sum(states.state(cell).status != "finished" for cell in plan.cells())
    if left:
        raise UserError(f"{data['name']}: {left} cells are not finished; the same command goes on")
    return plan


def run_experiment(experiment: Experiment, output: Path, *, quick: bool, base: str | None) -> Plan:
    """Run an experiment, its search first; the plan of its ablation."""
    rates: dict[str, float] = {}
    if experiment.search is not None:
        search = derived(HERE / f"{experiment.search}.yaml", output, quick=quick, base=base, rates={})
        rates = best_rates(results_of(run_ablation(search, output)))
    return run_ablation(derived(experiment.file, output, quick=quick, base=base, rates=rates), output)


def best_rates(results: Results) -> dict[str, float]:
    """Of a search over the axes `method` and `lr`: each method's learning rate with the best last score."""
    best: dict[str, tuple[float, float]] = {}
    for variant in results.variants:
        if variant.score is not None:
            found = (variant.score.value, float(variant.axes["lr"]))
            best[variant.axes["method"]] = max(best.get(variant.axes["method"], found), found)
    return {method: rate for method, (_, rate) in best.items()}
