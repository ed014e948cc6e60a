"""Record of the signal to noise of gradients: a JSON file, from which the page is written."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_lab.ablation.statistics import Interval
from experiments.signal.arms import ARMS, CHEAP, PLAIN
from experiments.signal.measure import Cost, Measured, OfPrompt
from experiments.statistics.gradients import SignalNoise, ratio_of_means

__all__ = ["Record", "Row", "load", "save"]

DIGITS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """An arm at one set of weights. snr: signal to noise, averaged over prompts; ratio: to the plain arm's; per_pass:
    the ratio, divided by that of the passes of a group; of_sums: the ratio of total signal to total noise instead, in
    which prompts with large gradients weigh more; spread: of the rewards in a group."""

    name: str
    cost: Cost
    snr: float
    ratio: Interval
    per_pass: Interval
    of_sums: float
    spread: float


@dataclass(frozen=True)
class Record:
    """facts: of the machine; rows: by weights and arm; correlations: by weights and cheap steps, averaged over
    prompts."""

    quick: bool
    facts: Mapping[str, Any]
    measured: Measured
    rows: Mapping[str, Mapping[str, Row]]
    correlations: Mapping[str, Mapping[int, float]]


def save(path: Path, measured: Measured, *, quick: bool) -> None:
    """Write the measurements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": version("torch"), "cores": os.cpu_count()}
    data = {"quick": quick, "facts": facts, **_rounded(asdict(measured))}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Round all numbers with a fraction to as many significant digits as the page needs."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def load(path: Path) -> Record:
    """Read a record written by `save`. Raises UserError if it does not exist."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run the experiment first") from None
    at = {weights: [_of_prompt(one) for one in found] for weights, found in data["at"].items()}
    measured = Measured(
        data["redraws"], data["parameters"], data["steps"],
        {name: Cost(**cost) for name, cost in data["costs"].items()}, at,
    )  # fmt: skip
    rows = {weights: {arm.name: _row(arm.name, measured.costs, found) for arm in ARMS} for weights, found in at.items()}
    correlations = {weights: {steps: _correlation(steps, found) for steps in CHEAP} for weights, found in at.items()}
    return Record(data["quick"], data["facts"], measured, rows, correlations)


def _of_prompt(data: Mapping[str, Any]) -> OfPrompt:
    gradients = {name: SignalNoise(**found) for name, found in data["gradients"].items()}
    return OfPrompt(gradients, data["spread"], data["correlation"])


def _row(name: str, costs: Mapping[str, Cost], found: Sequence[OfPrompt]) -> Row:
    own, plain = ([one.gradients[arm] for one in found] for arm in (name, PLAIN))
    ratio = ratio_of_means([one.ratio for one in own], [one.ratio for one in plain])
    price = costs[name].members * costs[name].passes / (costs[PLAIN].members * costs[PLAIN].passes)
    low, high = (None if end is None else end / price for end in (ratio.low, ratio.high))
    return Row(
        name, costs[name], statistics.fmean(one.ratio for one in own), ratio,
        Interval(ratio.value / price, low, high, ratio.n, ratio.over),
        _of_sums(own) / _of_sums(plain), statistics.fmean(one.spread[name] for one in found),
    )  # fmt: skip


def _of_sums(found: Sequence[SignalNoise]) -> float:
    return sum(one.signal for one in found) / sum(one.noise for one in found)


def _correlation(steps: int, found: Sequence[OfPrompt]) -> float:
    """Return the mean over prompts; nan if no group has one."""
    known = [value for one in found if (value := one.correlation[str(steps)]) is not None]
    return statistics.fmean(known) if known else float("nan")
