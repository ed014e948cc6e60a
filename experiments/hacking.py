"""How far a flawed reward was exploited, and when monitors showed it: numbers and sentences for the page of E11."""

from __future__ import annotations

import statistics as plain
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dgpo_lab.ablation import words
from dgpo_lab.ablation.results import Results, VariantResult
from dgpo_lab.ablation.statistics import Interval, t_interval
from dgpo_lab.ablation.traces import Trace

__all__ = ["Alarm", "Hacking"]

FLAWED = "flawed"
"""Label of the flawed reward."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """When a monitor left its tolerance: in `seeds` of `of` seeds, in the median of these after `iteration`."""

    seeds: int
    of: int
    iteration: float | None

    @property
    def sure(self) -> bool:
        """Whether it did in every seed."""
        return 0 < self.seeds == self.of

    def text(self) -> str:
        """Return `8 of 8 seeds, after 40`, or `0 of 8 seeds`."""
        return f"{self.seeds} of {self.of} seeds" + ("" if self.iteration is None else f", after {self.iteration:.0f}")


class Hacking:
    """Reads the results of E11: the score is the honest one, the flawed reward is among `monitors` or `others`."""

    def __init__(self, results: Results) -> None:
        self.results = results
        names = {name for variant in results.variants for trace in variant.finished for name in trace.monitors}
        self.monitors: Sequence[str] = sorted(names - {FLAWED, results.reward})

    def change(self, variant: VariantResult) -> Interval:
        """Return the change of the honest score in training, over seeds."""
        return t_interval([t.score - t.scores[0] for t in variant.finished])

    def lost(self, variant: VariantResult) -> Interval:
        """Return how far the honest score at the end is below its maximum, whose place is taken for each seed from the
        mean over the others, so that luck of single evaluations is not counted."""
        curves = np.array([t.scores for t in variant.finished])
        others = [np.delete(curves, i, axis=0) if len(curves) > 1 else curves for i in range(len(curves))]
        best = [int(rest.mean(axis=0).argmax()) for rest in others]
        return t_interval([float(curve[place] - curve[-1]) for curve, place in zip(curves, best, strict=True)])

    def flawed(self, variant: VariantResult) -> Interval | None:
        """Return the change of the flawed reward; None if it was not evaluated."""
        curves = [_flawed(trace) for trace in variant.finished]
        known = [curve for curve in curves if curve]
        return t_interval([curve[-1] - curve[0] for curve in known]) if known else None

    def alarm(self, variant: VariantResult, monitor: str) -> Alarm:
        """Return when a monitor left its tolerance."""
        found = [t.monitors[monitor].left_at for t in variant.finished if monitor in t.monitors]
        left = [iteration for iteration in found if iteration is not None]
        return Alarm(len(left), len(found), plain.median(left) if left else None)

    def exploited(self) -> list[str]:
        """Return the variants whose honest score ends below its maximum, by the interval."""
        lost = {variant.name: self.lost(variant).low for variant in self.results.variants if variant.finished}
        return [name for name, low in lost.items() if low is not None and low > 0]

    def headline(self) -> str:
        """Return whether the flaw was exploited, in one sentence."""
        names = ", ".join(f"`{name}`" for name in self.exploited())
        samples = max(t.samples[-1] for variant in self.results.variants for t in variant.finished)
        if not names:
            return f"No variant exploited the flaw within {samples:,} samples: none ends below its maximum."
        return f"The flaw was exploited within {samples:,} samples by {names}: right images end below their maximum."

    def seen(self) -> str:
        """Return which monitors showed the exploitation in every seed of the baseline, and whether any of them left its
        tolerance where the flaw was not exploited."""
        baseline = next(v for v in self.results.variants if v.name == self.results.baseline)
        found = {name: self.alarm(baseline, name) for name in self.monitors}
        sure = [f"`{name}` after {one.iteration:.0f}" for name, one in found.items() if one.iteration and one.sure]
        other = [v for v in self.results.variants if v.finished and v.name not in self.exploited()]
        false = [f"`{v.name}`" for v in other if any(self.alarm(v, name).seeds for name in self.monitors)]
        return (
            f"Monitors that left their tolerance in every seed of `{baseline.name}`, with the iterations until then: "
            f"{', '.join(sure) or 'none'}. Where the flaw was not exploited, "
            f"{'some did in ' + ', '.join(false) if false else 'none did in any seed'}."
        )

    def sentences(self) -> Iterator[str]:
        """Yield one sentence for each variant, and one for each monitor."""
        for variant in self.results.variants:
            change, lost = self.change(variant), self.lost(variant)
            flawed = self.flawed(variant)
            said = "" if flawed is None else f" while the flawed reward changed by {words.signed(flawed)}"
            worse = lost.low is not None and lost.low > 0
            fall = f"; it ends {words.interval(lost)} below its maximum" if worse else ""
            yield f"`{variant.name}`: right images changed by {words.signed(change)}{said}{fall}."
        baseline = next(v for v in self.results.variants if v.name == self.results.baseline)
        for monitor in self.monitors:
            yield f"`{monitor}` left its tolerance in the baseline in {self.alarm(baseline, monitor).text()}."


def _flawed(trace: Trace) -> Sequence[float]:
    if FLAWED in trace.monitors:
        return trace.monitors[FLAWED].values
    return trace.others.get(FLAWED, ())
