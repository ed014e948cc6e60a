"""Record of the scores at equal seconds: a JSON file, from which the page is written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import Results, VariantResult, compare
from dgpo_lab.ablation.statistics import Interval, t_interval
from dgpo_lab.ablation.traces import Trace
from experiments.seconds.costs import Cost, Round, cost_of
from experiments.seconds.measure import Measured
from experiments.seconds.variants import BASELINE, SETTINGS, VARIANTS, Variant

__all__ = ["Record", "Row", "load", "save"]

REWARD = "miniature-motion"


@dataclass(frozen=True, slots=True)
class Row:
    """A variant. cost: CPU seconds of an iteration; ratio: of a late one to the baseline's, geometric mean over rounds
    with a t interval of the logarithms; iterations: that take the budget; equal: whether its weights after a few
    iterations were the baseline's, bit for bit."""

    variant: Variant
    cost: Cost
    ratio: Interval
    iterations: float
    equal: bool
    result: VariantResult


@dataclass(frozen=True)
class Record:
    """facts: of the machine; results: scores by variant, paired by seed."""

    budget: float
    quick: bool
    facts: Mapping[str, Any]
    rows: Sequence[Row]
    results: Results


def save(path: Path, measured: Measured, *, quick: bool) -> None:
    """Write the measurements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": version("torch"), "cores": os.cpu_count(), "settings": dict(SETTINGS)}
    data = {"quick": quick, "facts": facts, **asdict(measured)}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Record:
    """Read a record written by `save`. Raises UserError if it does not exist."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run the experiment first") from None
    named = {variant.name: {"saving": variant.name} for variant in VARIANTS}
    rounds = [Round(**one) for one in data["rounds"]]
    costs = {variant.name: cost_of(variant, rounds) for variant in VARIANTS}
    traces = [
        Trace(
            variant=name, seed=int(seed), state=State("finished"), iterations=[0, round(data["iterations"][name])],
            scores=[data["base"][seed], score], seconds=[0.0, data["budget"]], samples=[0, 0],
        )
        for name in named
        for seed, score in data["scores"][name].items()
    ]  # fmt: skip
    results = compare(named, traces, reward=REWARD, baseline=BASELINE, target=None)
    rows = [
        Row(
            variant, costs[variant.name], _ratio(variant, rounds), data["iterations"][variant.name],
            data["digests"].get(variant.name) == data["digests"][BASELINE], result,
        )
        for variant, result in zip(VARIANTS, results.variants, strict=True)
    ]  # fmt: skip
    return Record(data["budget"], data["quick"], data["facts"], rows, results)


def _ratio(variant: Variant, rounds: Sequence[Round]) -> Interval:
    """Return the ratio of the seconds of a late iteration to the baseline's, paired by round."""
    pairs = [(cost_of(variant, [one]).late, cost_of(VARIANTS[0], [one]).late) for one in rounds]
    found = t_interval([math.log(own / other) for own, other in pairs])
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Interval(math.exp(found.value), low, high, found.n, "rounds")
