"""Signs in the objective: a saturated sigmoid, a clip that is too tight, signed weights that do not cancel.

In L = -log sigmoid(-S_g) the weight of a group's gradient is sigmoid(S_g): 1/2 at the start, where the policy equals
the reference model; near 0 if the group's preference is satisfied, near 1 if it is violated.
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

PUBLISHED_BETA = (
    "The DGPO authors' code recommends a beta of 10 to 100 with a frozen reference and 2000 to 5000 with a dynamic one."
)
SATURATED = 0.05
"""Mean sigmoid(S_g) below which less than a tenth of the initial gradient is left (it starts at 0.5)."""
GONE = 0.01
"""Mean below which less than a fiftieth is left."""
VIOLATED = 0.9
"""Mean above which nearly every group's preference is violated."""
IDLE = 0.005
"""Largest distance from 0.5 at which the sigmoid has no effect."""
WHOLE = 0.02
"""Median distance to the nearest integer up to which a sum counts as an integer; for arbitrary numbers it is 0.25."""
MANY_CLIPPED = 0.5
"""Fraction of clipped members above which more members are clipped than trained on."""
NEARLY_ALL_CLIPPED = 0.9
"""Fraction of clipped members above which almost no gradient is left."""
WIDEST = 0.5
"""Largest clip to suggest: it lets ratios of 0.5 to 1.5 through."""
LEFT = 0.1
"""|sum c| / G above which log Z remains in the preference: sum |c| is about G, so a tenth of it does not cancel."""


def _sigmoid(run: Facts) -> Values | str | None:
    """Whether sigmoid(S_g) still distinguishes groups."""
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
        evidence=[series.late.evidence("mean sigmoid(S_g): median")],
    )


def _smaller_beta(run: Facts, _: Values) -> Iterable[Change]:
    beta, moves = run.config.objective.beta, run.config.objective.reference in ("ema_fast", "reset")
    largest = 5000.0 if moves else 100.0
    yield Change("objective.beta", beta, largest if beta > largest else beta / 10)


def _larger_beta(run: Facts, _: Values) -> Iterable[Change]:
    yield Change("objective.beta", run.config.objective.beta, 10 * run.config.objective.beta)


def _idle(series: Series) -> bool:
    return bool(np.abs(series.late.values - 0.5).max() < IDLE)


def _all_or_nothing(run: Facts, series: Series) -> str:
    """Return evidence that every sigmoid is 0 or 1, or "" if there is none.

    If every sigmoid is 0 or 1, their mean times their number is an integer in every iteration. Groups without a
    preference have S_g = 0 and contribute 1/2 each; without a KL term they are not counted. Iterations with missing
    scores are skipped because their groups differ in size.
    """
    config = run.config
    groups, count = config.rollout.groups, config.timesteps.count * config.optimizer.passes
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
        f"the mean, times the {groups * count} (group, timestep) pairs of an iteration, is an integer to within "
        f"{figure(max(distance, 1e-3))} (metrics.jsonl, iterations {first} to {int(run.data.iterations[-1])})"
    )


SIGMOID = Subject("sigmoid", _sigmoid, "mean sigmoid(S_g) {late}", (
    Rule(
        "sigmoid-near-zero", lambda v: "problem" if v.late < GONE else "warning",
        "sigmoid(S_g), the weight of each group's gradient, is near 0, so the model learns little.",
        f"A large beta scales the preferences up, so that they already count as satisfied. {PUBLISHED_BETA}",
        lambda v: v.late < SATURATED, _smaller_beta, evidence=("{beta}",),
    ),
    Rule(
        "sigmoid-near-one", "warning",
        "sigmoid(S_g) is near 1: the preference of nearly every group is violated.",
        "The policy prefers the worse samples more than the reference model does. It has drifted, or the optimizer "
        "steps are too large.",
        lambda v: v.late > VIOLATED, slower, evidence=("{beta}",),
    ),
    Rule(
        "sigmoid-all-or-nothing", "warning",
        "sigmoid(S_g) is 0 or 1 for every group: beta is too large.",
        f"Satisfied groups give no gradient, and all other groups have the same weight. {PUBLISHED_BETA}",
        lambda v: bool(v.whole), _smaller_beta, evidence=("{whole}", "{beta}"),
    ),
    Rule(
        "sigmoid-idle", "note",
        "sigmoid(S_g) stays at 1/2: the group preference never saturates.",
        "The loss then equals a plain advantage-weighted loss: satisfied groups are not weighted down. "
        f"{PUBLISHED_BETA}",
        lambda v: v.idle, _larger_beta, evidence=("{beta}",),
    ),
))  # fmt: skip


def _clip(run: Facts) -> Values | str | None:
    """Whether the PPO-style clip removes most of the gradient."""
    series = run.series("clip_fraction")
    if not series.known:
        return None
    if not series.enough:
        return run.too_few()
    clip = run.config.objective.clip
    shown = "null, the objective's default" if clip is None else f"{clip:g}"
    evidence = [series.late.evidence("clip_fraction: median", percent), f"objective.clip is {shown} (config.yaml)"]
    return Values(late=series.late.median, evidence=evidence)


def _wider_clip(run: Facts, _: Values) -> Iterable[Change]:
    clip = run.config.objective.clip
    if clip is not None and clip < WIDEST:
        yield Change("objective.clip", clip, min(10 * clip, WIDEST))
    yield lower_rate(run)


CLIP = Subject("clip", _clip, "samples clipped: {late:%}", (
    Rule(
        "clip-fraction-high", lambda v: "problem" if v.late > NEARLY_ALL_CLIPPED else "warning",
        "The clip removes the gradient of most samples: {late:%} are clipped.",
        "A clipped sample counts in S_g but gives no gradient. The DGPO authors' code recommends a clip of 1e-3 to "
        "1e-2 with guidance in the rollouts, and 1e-5 to 1e-4 without.",
        lambda v: v.late > MANY_CLIPPED, _wider_clip,
    ),
))  # fmt: skip


def _residual(run: Facts) -> Values | None:
    """Whether the partition function cancels, which requires that a group's signed weights sum to 0."""
    share = run.series("residual").map(lambda values: values / run.config.rollout.group_size)
    if run.config.objective.use != "dgpo" or not share.known:
        return None
    weighting = f"weighting is {run.config.weighting.use} (config.yaml); sum |c| is about G"
    evidence = [share.late.evidence("|sum c| / G: median"), weighting]
    return Values(late=share.late.median, balanced=run.config.advantages.balance, evidence=evidence)


RESIDUAL = Subject("residual", _residual, "|sum c| / G {late:.2f}", (
    Rule(
        "residual-large", "warning",
        "The signed weights of a group do not sum to 0: the partition function does not cancel.",
        "log Z drops out of the group preference only if the positive and the negative weights have the same sum, as "
        "with the weighting |A| (arXiv 2510.08425).",
        lambda v: v.late > LEFT and not v.balanced,
        lambda run, _: (Change("advantages.balance", False, True), *paper_weighting(run)),
    ),
))  # fmt: skip
