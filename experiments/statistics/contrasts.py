"""Contrasts of variants that share their random numbers, seed by seed, and the verdict on each by a fixed rule.

Variants of an ablation draw the same prompts and noise from the same seed (common random numbers): what seeds have in
common cancels in the difference, whose variance is what an interval needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dgpo_lab.ablation.statistics import Interval, holm, sign_flip_test, t_interval

__all__ = ["Contrast", "Rule", "Verdict", "contrasts", "equivalence_p"]

Verdict = Literal["difference", "equivalent", "undecided"]
Values = Mapping[str, Mapping[int, float]]
"""Variant to seed to the number that is compared, such as the last score."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a contrast is decided; to be written down before the runs.

    margin: differences below it count as none; level: the error rate of a claimed difference over all contrasts, and of
    a claimed equivalence for each contrast. Only differences are corrected: they are what a choice is made by, and
    corrected equivalences would take many more seeds.
    """

    margin: float
    level: float = 0.05

    def verdict(self, different: float, equivalent: float) -> Verdict:
        """Return the verdict from the corrected p value against no difference, and that against one beyond the margin.

        `equivalent` if the difference is shown to be within the margin, even if it is also shown not to be 0: the
        margin says which differences matter. Else `difference`, if it is shown not to be 0. Else `undecided`.
        """
        if equivalent <= self.level:
            return "equivalent"
        return "difference" if different <= self.level else "undecided"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A variant against another over their n common seeds.

    difference: with a 95 % t interval; p, corrected: of the sign-flip test against no difference, and after Holm's
    correction; equivalent: of the test against a difference beyond the margin.
    """

    name: str
    against: str
    difference: Interval
    p: float
    corrected: float
    equivalent: float
    verdict: Verdict

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval; infinite for a single seed."""
        found = self.difference
        return math.inf if found.low is None or found.high is None else (found.high - found.low) / 2


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p value of two one-sided t tests (Schuirmann 1987) against |mean difference| >= margin.

    It is at most 0.05 exactly if the 90 % t interval lies within [-margin, margin]. 1 for fewer than two differences.
    """
    found = np.asarray(differences, dtype=np.float64)
    n = len(found)
    if n < 2:
        return 1.0
    from scipy.special import stdtr

    mean, error = float(found.mean()), float(found.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(max(stdtr(n - 1, -(mean + margin) / error), stdtr(n - 1, (mean - margin) / error)))


def contrasts(values: Values, pairs: Sequence[tuple[str, str]], rule: Rule) -> list[Contrast]:
    """Compare pairs of variants (name, against) as one family, and give the verdict of the rule on each.

    Holm's correction is applied to the tests against no difference: the chance that any claimed difference is none is
    at most `rule.level`. Pairs without a common seed are left out.
    """
    found = []
    for name, against in pairs:
        seeds = sorted(values[name].keys() & values[against].keys())
        if seeds:
            found.append((name, against, [values[name][seed] - values[against][seed] for seed in seeds]))
    different = [sign_flip_test(differences).p for _, _, differences in found]
    equivalent = [equivalence_p(differences, rule.margin) for _, _, differences in found]
    rows = zip(found, different, holm(different), equivalent, strict=True)
    return [
        Contrast(name, against, t_interval(differences), p, corrected, q, rule.verdict(corrected, q))
        for (name, against, differences), p, corrected, q in rows
    ]
