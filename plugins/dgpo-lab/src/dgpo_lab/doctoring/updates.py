"""Optimizer updates: weights that do not change, gradients that grow or are always clipped, skipped updates."""

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
"""Change of change_norm over the run that counts as none if the velocity has not changed either. Each AdamW update
moves n weights by about sqrt(n) learning rates: by 0.1 for as few as 100,000 weights at the published 3e-4."""
STILL_NORM_ALONE = 1e-5
"""The same threshold if the change of the velocity is not logged: a dozen updates at a learning rate of 1e-7 move
100,000 weights by 4e-4."""
STILL_VELOCITY = 1e-6
"""Mean squared change of the velocity, relative to the reference's denoising error, that counts as none: the square of
a thousandth of the error."""
ALWAYS_CLIPPED = 0.9
"""Fraction of iterations whose gradient norm exceeds max_grad_norm."""
GROWN = 5.0
"""Growth of the gradient norm that healthy runs do not show: all that were measured stay below 1.6."""
MANY_SKIPPED = 0.1
"""Fraction of updates that are skipped because of non-finite values."""


def still(run: Facts) -> bool:
    """Return whether the weights have not changed, after enough iterations to tell."""
    norm = run.series("change_norm")
    if run.iterations < MIN_ITERATIONS:
        return False
    moved = _velocity_moved(run)
    lora = run.config.backbone.train == "lora" and norm.known > 1
    if moved.known:
        return moved.late.median < STILL_VELOCITY and not (lora and _span(norm) >= STILL_NORM)
    return lora and _span(norm) < STILL_NORM_ALONE


def _velocity_moved(run: Facts) -> Series:
    """Return kl / dsm_reference; nan with a guided reference, whose distance is not 0 at the start."""
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
        return Values(none=True, evidence=[f"updates is 0 throughout ({updates.whole.where})"])
    stands = still(run)
    if stands and run.config.optimizer.warmup > updates.whole.values.max():
        return f"the learning-rate warmup of {run.config.optimizer.warmup} updates is not over"
    evidence, traveled = [], ""
    if norm.known:
        first, last = norm.whole.values[0], norm.whole.values[-1]
        evidence.append(f"change_norm went from {first:.5g} to {last:.5g} ({norm.whole.where})")
        traveled = f"change_norm {first:.4g} to {last:.4g}"
    if moved.known:
        evidence.append(moved.late.evidence("mean squared change of the velocity / dsm_reference: median"))
    if stands:
        evidence.append(run.series("learning_rate").late.evidence("learning_rate: median"))
    return Values(none=False, still=stands, traveled=traveled, evidence=evidence)


WEIGHTS = Subject("weights", _weights, "{traveled}", (
    Rule(
        "no-updates", "problem",
        "The optimizer made no update.",
        "An update is skipped if the loss or a gradient is not finite, or if no group has a preference and there is no "
        "KL term.",
        lambda v: v.none,
    ),
    Rule(
        "weights-not-moving", "problem",
        "The weights do not change.",
        "The learning rate is probably too low. The published learning rate for LoRA is 3e-4 (arXiv 2510.08425).",
        lambda v: v.still, lambda run, _: (higher_rate(run),),
    ),
))  # fmt: skip


def _gradients(run: Facts) -> Values | str:
    """Whether gradients explode, or are always clipped."""
    series, limit = run.series("grad_norm"), run.config.optimizer.max_grad_norm
    if not series.enough:
        return run.too_few()
    early, late = series.early, series.late
    return Values(
        grown=late.median / early.median if early.median > 0 else 0.0,
        clipped=0.0 if limit is None else float((late.values > limit).mean()),
        limit="" if limit is None else f"optimizer.max_grad_norm is {limit:g} (config.yaml)",
        late=late.median, first=early.evidence("grad_norm: median"), then=late.evidence("last third:"),
        last=late.evidence("grad_norm: median"), evidence=(),
    )  # fmt: skip


GRADIENTS = Subject("gradients", _gradients, "norm {late}", (
    Rule(
        "gradient-growing", "warning",
        "The gradient norm has grown by a factor of {grown:.0f}.",
        "A growing gradient precedes divergence: the loss has no bound as training moves away from bad samples.",
        lambda v: v.grown > GROWN, slower, evidence=("{first}", "{then}"),
    ),
    Rule(
        "gradient-always-clipped", "note",
        "Nearly every gradient is clipped: its norm exceeds max_grad_norm.",
        "AdamW is almost invariant to a constant factor, but a limit below the usual norm does not protect from "
        "outliers.",
        lambda v: v.clipped > ALWAYS_CLIPPED,
        lambda run, v: (Change("optimizer.max_grad_norm", run.config.optimizer.max_grad_norm, rounded(3 * v.late)),),
        evidence=("{last}", "{limit}"),
    ),
))  # fmt: skip


def _skipped(run: Facts) -> Values:
    """Whether updates are skipped because of non-finite values."""
    series, updates = run.series("skipped_updates"), run.series("updates")
    if not series.known or not series.whole.values[-1]:
        return Values(skipped=0)
    skipped = int(series.whole.values[-1])
    total = skipped + (int(updates.whole.values[-1]) if updates.known else 0)
    evidence = [f"skipped_updates is {skipped} (metrics.jsonl, iteration {int(run.data.iterations[-1])})"]
    return Values(skipped=skipped, total=total, evidence=evidence)


def _more_precise(run: Facts, _: Values) -> Iterable[Change]:
    yield lower_rate(run)
    if run.config.precision.autocast == "bf16":
        yield Change("precision.autocast", "bf16", "no")


SKIPPED = Subject("skipped updates", _skipped, "no updates skipped", (
    Rule(
        "updates-skipped", lambda v: "problem" if v.skipped / v.total > MANY_SKIPPED else "warning",
        "{skipped} of {total} updates were skipped because of non-finite losses or gradients.",
        "Either half precision overflows, or the weights have diverged.",
        lambda v: v.skipped > 0, _more_precise,
    ),
))  # fmt: skip
