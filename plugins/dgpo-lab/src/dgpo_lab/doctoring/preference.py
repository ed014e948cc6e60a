"""The objective's own signs: a sigmoid that is saturated, a clip that takes too much, what does not cancel.

In L = -log sigmoid(-S_g) the weight of a group's gradient is sigmoid(S_g): 1/2 at the start, where the policy is its
reference; near 0 where the group's preference is satisfied, near 1 where it is violated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding, figure, percent
from dgpo_lab.doctoring.remedies import lower_rate, more_kl, paper_weighting
from dgpo_lab.doctoring.trends import MIN_ITERATIONS, MIN_TREND, Series
from dgpo_lab.doctoring.updates import still

__all__ = ["clipping", "residual", "sigmoid"]

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
"""Share of members whose gradient is clipped away that is more than what is learnt from."""
NEARLY_ALL_CLIPPED = 0.9
"""Share from which hardly anything is left to learn from."""
WIDEST = 0.5
"""Clip up to which a wider one is suggested: beyond it a ratio of 1.5, or of 0.5, is let through."""
RESIDUAL = 0.1
"""|sum c| over G from which Z is left in the preference: sum |c| is about G, so a tenth of it does not cancel."""


def sigmoid(run: Facts) -> Examination:
    """Whether sigmoid(S_g) still tells groups apart."""
    series = run.series("sigmoid")
    if not series.known:
        return Examination("sigmoid")
    if not series.enough:
        return Examination("sigmoid", open=run.too_few())
    late = series.late
    line = late.said("mean sigmoid(S_g): median")
    beta = run.config.objective.beta
    smaller = (Change("objective.beta", beta, _smaller_beta(run)),)
    whole = _all_or_nothing(run, series)
    if late.median < SATURATED:
        finding = Finding(
            "sigmoid-near-zero",
            "problem" if late.median < GONE else "warning",
            "sigmoid(S_g), the weight of every gradient, is near 0: little is learnt.",
            (line, f"objective.beta is {beta:g} (config.yaml)"),
            f"The groups' preferences count as satisfied, because beta scales them up. {PUBLISHED_BETA}",
            smaller,
        )
    elif late.median > VIOLATED:
        finding = Finding(
            "sigmoid-near-one",
            "warning",
            "sigmoid(S_g) is near 1: nearly every group's preference is violated.",
            (line, f"objective.beta is {beta:g} (config.yaml)"),
            "The policy has become worse than its reference at telling good from bad: it has drifted, or the steps are "
            "too large.",
            (
                lower_rate(run),
                more_kl(run),
            ),
        )
    elif whole:
        finding = Finding(
            "sigmoid-all-or-nothing",
            "warning",
            "sigmoid(S_g) is 0 or 1 for every single group: beta is too large.",
            (line, whole, f"objective.beta is {beta:g} (config.yaml)"),
            f"Satisfied groups are switched off and all others count alike. {PUBLISHED_BETA}",
            smaller,
        )
    elif series.known >= MIN_TREND and _idle(series) and not still(run):
        finding = Finding(
            "sigmoid-idle",
            "note",
            "sigmoid(S_g) stays at 1/2: the group preference never saturates.",
            (line, f"objective.beta is {beta:g} (config.yaml)"),
            f"The loss is then a plain advantage-weighted one, without its brake. {PUBLISHED_BETA}",
            (Change("objective.beta", beta, 10 * beta),),
        )
    else:
        return Examination("sigmoid", fine=late.brief("mean sigmoid(S_g)"))
    return Examination("sigmoid", (finding,))


def _smaller_beta(run: Facts) -> float:
    largest = 5000.0 if run.config.objective.reference == "ema" else 100.0
    beta = run.config.objective.beta
    return largest if beta > largest else beta / 10


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


def clipping(run: Facts) -> Examination:
    """Whether the PPO-style clip takes away what there is to learn."""
    series = run.series("clip_fraction")
    if not series.known:
        return Examination("clip")
    if not series.enough:
        return Examination("clip", open=run.too_few())
    late = series.late
    line = late.said("clip_fraction: median", percent)
    if late.median <= MANY_CLIPPED:
        return Examination("clip", fine=late.brief("members clipped:", percent))
    clip = run.config.objective.clip
    wider = () if clip is None or clip >= WIDEST else (Change("objective.clip", clip, min(10 * clip, WIDEST)),)
    finding = Finding(
        "clip-fraction-high",
        "problem" if late.median > NEARLY_ALL_CLIPPED else "warning",
        "The clip takes the gradient of most members away.",
        (line, "objective.clip is " + ("the objective's own" if clip is None else f"{clip:g}") + " (config.yaml)"),
        "A clipped member counts in S_g but gives no gradient. The DGPO authors' code recommends "
        "1e-3 to 1e-2 with guided rollouts, 1e-5 to 1e-4 without.",
        (*wider, lower_rate(run)),
    )
    return Examination("clip", (finding,))


def residual(run: Facts) -> Examination:
    """Whether the partition function cancels: it does where a group's signed weights sum to 0."""
    size = run.config.rollout.group_size
    share = run.series("residual").map(lambda values: values / size)
    if run.config.objective.use != "dgpo" or not share.known:
        return Examination("residual")
    line = share.late.said("|sum c| over G: median")
    if share.late.median <= RESIDUAL or run.config.advantages.balance:
        return Examination("residual", fine=share.late.brief("|sum c| over G", lambda value: f"{value:.2f}"))
    finding = Finding(
        "residual-large",
        "warning",
        "The signed weights of a group do not sum to 0: the partition function does not cancel.",
        (line, f"weighting is {run.config.weighting.use} (config.yaml); sum |c| is about G"),
        "The group preference is free of log Z only where the weights of both sides are equal, as |A| makes them "
        "(arXiv 2510.08425).",
        (Change("advantages.balance", False, True), *paper_weighting(run)),
    )
    return Examination("residual", (finding,))
