"""Search for the settings of an ablation's variants: the same number of trials for each, on seeds of their own.

The section `tuning` of an experiment's file says which settings and values. Trials run in rounds: each on its own
seeds, with the best `keep` trials of every arm (all in the first round). The trial with the largest mean area under the
learning curve over all seeds, up to the samples of a trial, gives the arm's settings: what learns early counts, and not
the last score. Rounds are ablations, whose finished runs are kept: a search continues where it stopped.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from dgpo_core.errors import UserError
from dgpo_lab.ablation.plan import label_of
from dgpo_lab.ablation.results import Results
from experiments.statistics.curves import area

__all__ = ["Search", "Trial", "best", "read", "search", "trials", "untuned"]

Settings = Mapping[str, Any]
"""Dotted keys of a run file and their values."""
Ablate = Callable[[dict[str, Any]], Results]
"""Runs an ablation from its data; trials may fail."""
QUICK: Mapping[str, Any] = {"arms": 2, "trials": 2, "iterations": 4}


@dataclass
class Trial:
    """Settings that were tried, and the area under the curve by seed; a run that failed has none."""

    settings: dict[str, Any]
    areas: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean area over seeds; worse than any other without one."""
        return plain.fmean(self.areas.values()) if self.areas else float("-inf")

    def text(self) -> str:
        """Format the settings: `learning_rate 0.003, beta 20`."""
        return ", ".join(f"{key.rpartition('.')[2]} {label_of(value)}" for key, value in self.settings.items())


@dataclass
class Search:
    """Trials of every arm. rounds: seeds and number of trials kept of each; samples: of a trial; untuned: arms that run
    with their untuned settings as well."""

    rounds: Sequence[Mapping[str, Any]]
    samples: int
    arms: dict[str, list[Trial]]
    untuned: Sequence[str] = ()

    def chosen(self, name: str) -> Settings | None:
        """Return an arm's best settings among the trials that ended with every seed; None if there is none."""
        seeds = {seed for one in self.rounds for seed in one["seeds"]}
        complete = [trial for trial in self.arms[name] if trial.areas.keys() == seeds]
        return max(complete, key=lambda trial: trial.mean).settings if complete else None

    def data(self) -> dict[str, Any]:
        """Return it as JSON data."""
        arms = {
            name: [{"settings": t.settings, "areas": {str(s): round(a, 6) for s, a in t.areas.items()}} for t in found]
            for name, found in self.arms.items()
        }
        return {"rounds": list(self.rounds), "samples": self.samples, "untuned": list(self.untuned), "arms": arms}


def read(data: Mapping[str, Any]) -> Search:
    """Read what `Search.data` returned."""
    arms = {
        name: [Trial(dict(t["settings"]), {int(s): a for s, a in t["areas"].items()}) for t in found]
        for name, found in data["arms"].items()
    }
    return Search(data["rounds"], data["samples"], arms, data["untuned"])


def trials(values: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """Return `count` combinations of the values of each setting, that of the first values first.

    If there are m times as many combinations, those are taken whose places in the lists sum to a multiple of m: a
    balanced fraction, in which every value of a setting is tried equally often with every value of another. Raises
    ValueError if that does not give `count`.
    """
    places = list(product(*(range(len(found)) for found in values.values())))
    share = max(1, len(places) // count)
    chosen = [place for place in places if sum(place) % share == 0]
    if len(chosen) != count:
        raise ValueError(f"{len(places)} combinations of {', '.join(values)} give {len(chosen)} trials, not {count}")
    return [{key: values[key][i] for key, i in zip(values, place, strict=True)} for place in chosen]


def best(found: Search) -> dict[str, Settings]:
    """Return the best settings of every arm, and those of the untuned ones as further arms (`NAME untuned`), unless
    they are the best themselves. Raises UserError if all trials of an arm failed."""
    chosen: dict[str, Settings] = {}
    for name in found.arms:
        settings = found.chosen(name)
        if settings is None:
            raise UserError(f"tuning: no trial of {name} ended with every seed; give it smaller learning rates")
        chosen[name] = settings
    extra = {name: found.arms[name][0].settings for name in found.untuned if name in found.arms}
    return chosen | {untuned(name): first for name, first in extra.items() if first != chosen[name]}


def untuned(name: str) -> str:
    """Return the name of an arm with its untuned settings."""
    return f"{name} untuned"


def search(data: Mapping[str, Any], ablate: Ablate, *, quick: bool) -> Search:
    """Run the search of an experiment's file, given as data. Raises UserError as `best` does."""
    tuning = data["tuning"]
    values, count = tuning["settings"], tuning["trials"]
    if quick:
        values = {name: values[name] for name in list(values)[: QUICK["arms"]]}
    arms = {name: [Trial(one) for one in trials(found, count)] for name, found in values.items()}
    if quick:
        arms = {name: found[: QUICK["trials"]] for name, found in arms.items()}
    rounds = [{"seeds": list(one["seeds"]), "keep": one.get("keep", count)} for one in tuning["rounds"]]
    found = Search(rounds, 0, arms, tuning["untuned"])
    for number, one in enumerate(rounds, start=1):
        kept = {
            f"{name} {place}": trial
            for name, tried in arms.items()
            for place, trial in sorted(enumerate(tried, start=1), key=lambda pair: -pair[1].mean)[: one["keep"]]
            if number == 1 or trial.areas
        }
        results = ablate(_round(data, number, one["seeds"], kept, quick=quick))
        for variant in results.variants:
            for trace in variant.finished:
                found.samples = trace.samples[-1]
                kept[variant.name].areas[trace.seed] = area(trace.samples, trace.scores, trace.samples[-1])
    best(found)
    return found


def _round(
    data: Mapping[str, Any], number: int, seeds: Sequence[int], kept: Mapping[str, Trial], *, quick: bool
) -> dict[str, Any]:
    """Return the ablation of a round: the trials as variants, in the order of arms and trials."""
    tuning = data["tuning"]
    given = {**data.get("set", {}), **tuning["set"]}
    if quick:
        given["run.iterations"] = QUICK["iterations"]
    own = data["axes"][0]["variants"]
    variants = {
        name: {key: value for key, value in own[name.rpartition(" ")[0]].items() if key not in tuning["set"]}
        | trial.settings
        for name, trial in sorted(kept.items(), key=lambda pair: _order(pair[0], list(tuning["settings"])))
    }
    return {
        **{key: value for key, value in data.items() if key not in ("tuning", "targets", "stop", "target")},
        "name": f"{data['name']}-search-{number}",
        "set": given,
        "axes": [{"name": "trial", "variants": variants}],
        "seeds": list(seeds),
    }


def _order(name: str, arms: Sequence[str]) -> tuple[int, int]:
    arm, _, place = name.rpartition(" ")
    return arms.index(arm), int(place)
