"""The objective's own signs: a sigmoid that is saturated, a clip that takes too much, what does not cancel.

In L = -log sigmoid(-S_g) the weight of a group's gradient is sigmoid(S_g): 1/2 at the start, where the policy is its
reference; near 0 where the group's preference is satisfied, near 1 where it is violated.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, figure, percent
from dgpo_lab.doctoring.remedies import lower_rate, paper_weighting, slower
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import MIN_ITERATIONS, MIN_TREND, Series
from dgpo_lab.doctoring.updates import still

__all__ = ["CLIP", "RESIDUAL", "SIGMOID"]

PUBLISHED_BETA = "The DGPO authors' code recommends 10 to 100 with a frozen reference, 2000 to 5000 with a dynamic one."
SATURATED = 0.05
"""Mean sigmoid(S_g) below which less than a tenth of the first gradient is left (it starts at 0.5)."""
GONE = 0.01
"""Below it a fiftieth is left."""
VIOLATED = 0.9
"""Mean above which nearly every group's preference is violated."""
IDLE = 0.005
"""Distance from 0.5 that a sigmoid may keep if it is to say nothing."""
WHOLE = 0.02
"""Median distance from whole numbers up to which a count is one; of any other number it is 0.25."""
MANY_CLIPPED = 0.5
"""Share of members whose gradient is clipped away that is more than what is learned from."""
NEARLY_ALL_CLIPPED = 0.9
"""Share from which hardly anything is left to learn from."""
WIDEST = 0.5
"""Clip up to which a wider one is suggested: beyond it a ratio of 1.5, or of 0.5, is let through."""
LEFT = 0.1
"""|sum c| over G from which Z is left in the preference: sum |c| is about G, so a tenth of it does not cancel."""


def _sigmoid(run: Facts) -> Values | str | None:
    """Whether sigmoid(S_g) still tells groups apart."""
    series = run.series("sigmoid")
    if not series.known:
        return None
    if not series.enough:
        return run.too_few()
    return Values(
        late=series.late.median,
        whole=_all_or_nothing(run, series),
        idle=series.known >= MIN_TREND and _idle(series) and not still(run),
        beta=f"objective.beta is {run.config.objective.beta:g} (config.yaml)",
        seen=[series.late.said("mean sigmoid(S_g): median")],
    )


def _smaller_beta(run: Facts, _: Values) -> Iterable[Change]:
    beta, largest = run.config.objective.beta, 5000.0 if run.config.objective.reference == "ema_fast" else 100.0
    yield Change("objective.beta", beta, largest if beta > largest else beta / 10)


def _larger_beta(run: Facts, _: Values) -> Iterable[Change]:
    yield Change("objective.beta", run.config.objective.beta, 10 * run.config.objective.beta)


def _idle(series: Series) -> bool:
    return bool(np.abs(series.late.values - 0.5).max() < IDLE)


def _all_or_nothing(run: Facts, series: Series) -> str:
    """Evidence that every sigmoid is 0 or 1: their mean, times their number, is then a whole number in every iteration.

    Groups without a preference have S_g = 0 and count 1/2 each; without a KL term they are left out. Iterations with
    missing scores, whose groups differ in size, are left out.
    """
    config = run.config
    groups, count = config.rollout.groups, config.timesteps.count
    equal = run.series("zero_variance_groups").values
    counted: NDArray[np.float64] = (groups - equal if config.objective.kl == 0 else groups + 0 * equal) * count
    halves = 0 * equal if config.objective.kl == 0 else 0.5 * equal * count
    total = series.values * counted - halves
    total[run.series("missing_rewards").values > 0] = np.nan
    total = total[len(total) // 3 :]  # at the start every S_g is 0
    total = total[np.isfinite(total)]
    if len(total) < MIN_ITERATIONS // 3 or _idle(series):
        return ""
    distance = float(np.median(np.abs(total - total.round())))
    if distance > WHOLE:
        return ""
    first = int(run.data.iterations[len(run.data.iterations) // 3])
    return (
        f"the mean times the {groups * count} (group, time) pairs of an iteration is a whole number, within "
        f"{figure(max(distance, 1e-3))} (metrics.jsonl, iterations {first} to {int(run.data.iterations[-1])})"
    )


SIGMOID = Subject("sigmoid", _sigmoid, "mean sigmoid(S_g) {late}", (
    Rule(
        "sigmoid-near-zero", lambda v: "problem" if v.late < GONE else "warning",
        "sigmoid(S_g), the weight of every gradient, is near 0: little is learned.",
        f"The groups' preferences count as satisfied, because beta scales them up. {PUBLISHED_BETA}",
        lambda v: v.late < SATURATED, _smaller_beta, seen=("{beta}",),
    ),
    Rule(
        "sigmoid-near-one", "warning",
        "sigmoid(S_g) is near 1: nearly every group's preference is violated.",
        "The policy has become worse than its reference at telling good from bad: it has drifted, or the steps are "
        "too large.",
        lambda v: v.late > VIOLATED, slower, seen=("{beta}",),
    ),
    Rule(
        "sigmoid-all-or-nothing", "warning",
        "sigmoid(S_g) is 0 or 1 for every single group: beta is too large.",
        f"Satisfied groups are switched off and all others count alike. {PUBLISHED_BETA}",
        lambda v: bool(v.whole), _smaller_beta, seen=("{whole}", "{beta}"),
    ),
    Rule(
        "sigmoid-idle", "note",
        "sigmoid(S_g) stays at 1/2: the group preference never saturates.",
        f"The loss is then a plain advantage-weighted one, without its brake. {PUBLISHED_BETA}",
        lambda v: v.idle, _larger_beta, seen=("{beta}",),
    ),
))  # fmt: skip


def _clip(run: Facts) -> Values | str | None:
    """Whether the PPO-style clip takes away what there is to learn."""
    series = run.series("clip_fraction")
    if not series.known:
        return None
    if not series.enough:
        return run.too_few()
    clip = run.config.objective.clip
    shown = "the objective's own" if clip is None else f"{clip:g}"
    seen = [series.late.said("clip_fraction: median", percent), f"objective.clip is {shown} (config.yaml)"]
    return Values(late=series.late.median, seen=seen)


def _wider_clip(run: Facts, _: Values) -> Iterable[Change]:
    clip = run.config.objective.clip
    if clip is not None and clip < WIDEST:
        yield Change("objective.clip", clip, min(10 * clip, WIDEST))
    yield lower_rate(run)


CLIP = Subject("clip", _clip, "members clipped: {late:%}", (
    Rule(
        "clip-fraction-high", lambda v: "problem" if v.late > NEARLY_ALL_CLIPPED else "warning",
        "The clip takes the gradient of most members away.",
        "A clipped member counts in S_g but gives no gradient. The DGPO authors' code recommends 1e-3 to 1e-2 with "
        "guided rollouts, 1e-5 to 1e-4 without.",
        lambda v: v.late > MANY_CLIPPED, _wider_clip,
    ),
))  # fmt: skip


def _residual(run: Facts) -> Values | None:
    """Whether the partition function cancels: it does where a group's signed weights sum to 0."""
    share = run.series("residual").map(lambda values: values / run.config.rollout.group_size)
    if run.config.objective.use != "dgpo" or not share.known:
        return None
    weighting = f"weighting is {run.config.weighting.use} (config.yaml); sum |c| is about G"
    seen = [share.late.said("|sum c| over G: median"), weighting]
    return Values(late=share.late.median, balanced=run.config.advantages.balance, seen=seen)


RESIDUAL = Subject("residual", _residual, "|sum c| over G {late:.2f}", (
    Rule(
        "residual-large", "warning",
        "The signed weights of a group do not sum to 0: the partition function does not cancel.",
        "The group preference is free of log Z only where the weights of both sides are equal, as |A| makes them "
        "(arXiv 2510.08425).",
        lambda v: v.late > LEFT and not v.balanced,
        lambda run, _: (Change("advantages.balance", False, True), *paper_weighting(run)),
    ),
))  # fmt: skip
