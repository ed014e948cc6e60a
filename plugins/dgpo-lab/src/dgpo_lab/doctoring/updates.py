"""Updates: weights that stand still, gradients that grow or are always cut, updates that are lost."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change
from dgpo_lab.doctoring.remedies import higher_rate, lower_rate, rounded, slower
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import MIN_ITERATIONS, Series

__all__ = ["GRADIENTS", "SKIPPED", "WEIGHTS", "still"]

STILL_NORM = 1e-3
"""Change of change_norm over the run that is none, if the velocity has not moved either. AdamW moves n weights by about
sqrt(n) learning rates an update: at the published 3e-4 by 0.1 for as few as 100,000."""
STILL_NORM_ALONE = 1e-5
"""The same where the log does not tell how far the velocity moved: a dozen updates at a learning rate of 1e-7 move
100,000 weights by 4e-4."""
STILL_VELOCITY = 1e-6
"""Mean squared change of the velocity, over the reference's denoising error, that is none: a thousandth of the error,
squared."""
ALWAYS_CLIPPED = 0.9
"""Share of iterations whose gradient is longer than max_grad_norm."""
GROWN = 5.0
"""Growth of the gradient's norm that a run which learns does not show: those looked at stay below 1.6."""
MANY_SKIPPED = 0.1
"""Share of updates skipped for non-finite values."""


def still(run: Facts) -> bool:
    """Whether the weights have not moved in iterations enough to see it."""
    norm = run.series("change_norm")
    if run.iterations < MIN_ITERATIONS:
        return False
    moved = _velocity_moved(run)
    lora = run.config.backbone.train == "lora" and norm.known > 1
    if moved.known:
        return moved.late.median < STILL_VELOCITY and not (lora and _span(norm) >= STILL_NORM)
    return lora and _span(norm) < STILL_NORM_ALONE


def _velocity_moved(run: Facts) -> Series:
    """kl over dsm_reference; nothing where the base is guided, which is away from the start."""
    section, moved = run.config.objective, run.series("kl").over(run.series("dsm_reference"))
    return moved if section.kl_cfg == 1 else moved.map(lambda values: values * math.nan)


def _span(norm: Series) -> float:
    values = norm.whole.values
    return float(values.max() - values.min())


def _weights(run: Facts) -> Values | str:
    """Whether training changes the model."""
    if run.iterations < MIN_ITERATIONS:
        return run.too_few()
    norm, updates, moved = run.series("change_norm"), run.series("updates"), _velocity_moved(run)
    if updates.known and not updates.whole.values.max():
        return Values(none=True, seen=[f"updates stays 0 ({updates.whole.where})"])
    stands = still(run)
    if stands and run.config.optimizer.warmup > updates.whole.values.max():
        return f"the warm-up of {run.config.optimizer.warmup} updates is not over"
    seen, traveled = [], ""
    if norm.known:
        first, last = norm.whole.values[0], norm.whole.values[-1]
        seen.append(f"change_norm went from {first:.5g} to {last:.5g} ({norm.whole.where})")
        traveled = f"moved by {first:.4g} to {last:.4g}"
    if moved.known:
        seen.append(moved.late.said("mean squared change of the velocity over dsm_reference: median"))
    if stands:
        seen.append(run.series("learning_rate").late.said("learning_rate: median"))
    return Values(none=False, still=stands, traveled=traveled, seen=seen)


WEIGHTS = Subject("weights", _weights, "{traveled}", (
    Rule(
        "no-updates", "problem",
        "Not one update was made.",
        "Updates are left out for non-finite values, and where no group has a preference and there is no KL term.",
        lambda v: v.none,
    ),
    Rule(
        "weights-not-moving", "problem",
        "The weights do not move.",
        "A LoRA that stays where it began has learned nothing; the published learning rate is 3e-4 (arXiv 2510.08425).",
        lambda v: v.still, lambda run, _: (higher_rate(run),),
    ),
))  # fmt: skip


def _gradients(run: Facts) -> Values | str:
    """Whether gradients explode, or are always cut."""
    series, limit = run.series("grad_norm"), run.config.optimizer.max_grad_norm
    if not series.enough:
        return run.too_few()
    early, late = series.early, series.late
    return Values(
        grown=late.median / early.median if early.median > 0 else 0.0,
        clipped=0.0 if limit is None else float((late.values > limit).mean()),
        limit="" if limit is None else f"optimizer.max_grad_norm is {limit:g} (config.yaml)",
        late=late.median, first=early.said("grad_norm: median"), then=late.said("later"),
        last=late.said("grad_norm: median"), seen=(),
    )  # fmt: skip


GRADIENTS = Subject("gradients", _gradients, "norm {late}", (
    Rule(
        "gradient-growing", "warning",
        "The gradient's norm has grown {grown:.0f}-fold.",
        "It precedes divergence: the loss grows without bound where bad samples are pushed away for ever.",
        lambda v: v.grown > GROWN, slower, seen=("{first}", "{then}"),
    ),
    Rule(
        "gradient-always-clipped", "note",
        "The gradient is longer than max_grad_norm in nearly every update.",
        "AdamW hardly minds a constant factor, but then the limit protects from nothing: it is below the usual.",
        lambda v: v.clipped > ALWAYS_CLIPPED,
        lambda run, v: (Change("optimizer.max_grad_norm", run.config.optimizer.max_grad_norm, rounded(3 * v.late)),),
        seen=("{last}", "{limit}"),
    ),
))  # fmt: skip


def _skipped(run: Facts) -> Values:
    """Whether updates are lost to non-finite values."""
    series, updates = run.series("skipped_updates"), run.series("updates")
    if not series.known or not series.whole.values[-1]:
        return Values(skipped=0)
    skipped = int(series.whole.values[-1])
    total = skipped + (int(updates.whole.values[-1]) if updates.known else 0)
    seen = [f"skipped_updates is {skipped} (metrics.jsonl, iteration {int(run.data.iterations[-1])})"]
    return Values(skipped=skipped, total=total, seen=seen)


def _more_precise(run: Facts, _: Values) -> Iterable[Change]:
    yield lower_rate(run)
    if run.config.precision.autocast == "bf16":
        yield Change("precision.autocast", "bf16", "no")


SKIPPED = Subject("skipped updates", _skipped, "no update was skipped", (
    Rule(
        "updates-skipped", lambda v: "problem" if v.skipped / v.total > MANY_SKIPPED else "warning",
        "{skipped} of {total} updates were skipped for non-finite losses or gradients.",
        "Half precision overflows, or the weights have left the range in which the model works.",
        lambda v: v.skipped > 0, _more_precise,
    ),
))  # fmt: skip
