"""Updates: weights that stand still, gradients that grow or are always cut, updates that are lost."""

from __future__ import annotations

import math

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding
from dgpo_lab.doctoring.remedies import higher_rate, lower_rate, more_kl, rounded
from dgpo_lab.doctoring.trends import MIN_ITERATIONS, Series

__all__ = ["gradients", "skipped_updates", "still", "weights"]

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


def weights(run: Facts) -> Examination:
    """Whether training changes the model."""
    if run.iterations < MIN_ITERATIONS:
        return Examination("weights", open=run.too_few())
    norm, updates = run.series("change_norm"), run.series("updates")
    if updates.known and not updates.whole.values.max():
        finding = Finding(
            "no-updates",
            "problem",
            "Not one update was made.",
            (f"updates stays 0 ({updates.whole.where})",),
            "Updates are left out for non-finite values, and where no group has a preference and there is no KL term.",
        )
        return Examination("weights", (finding,))
    lines = []
    if norm.known:
        first, last = norm.whole.values[0], norm.whole.values[-1]
        lines.append(f"change_norm went from {first:.5g} to {last:.5g} ({norm.whole.where})")
    moved = _velocity_moved(run)
    if moved.known:
        lines.append(moved.late.said("mean squared change of the velocity over dsm_reference: median"))
    if not still(run):
        return Examination("weights", fine=_travelled(norm) if norm.known else "")
    if run.config.optimiser.warmup > updates.whole.values.max():
        return Examination("weights", open=f"the warm-up of {run.config.optimiser.warmup} updates is not over")
    finding = Finding(
        "weights-not-moving",
        "problem",
        "The weights do not move.",
        (*lines, run.series("learning_rate").late.said("learning_rate: median")),
        "A LoRA that stays where it began has learnt nothing; the published learning rate is 3e-4 (arXiv 2510.08425).",
        (higher_rate(run),),
    )
    return Examination("weights", (finding,))


def _travelled(norm: Series) -> str:
    return f"moved by {norm.whole.values[0]:.4g} to {norm.whole.values[-1]:.4g}"


def gradients(run: Facts) -> Examination:
    """Whether gradients explode, or are always cut."""
    series, limit = run.series("grad_norm"), run.config.optimiser.max_grad_norm
    if not series.enough:
        return Examination("gradients", open=run.too_few())
    early, late = series.early, series.late
    if early.median > 0 and late.median / early.median > GROWN:
        finding = Finding(
            "gradient-growing",
            "warning",
            f"The gradient's norm has grown {late.median / early.median:.0f}-fold.",
            (early.said("grad_norm: median"), late.said("later")),
            "It precedes divergence: the loss grows without bound where bad samples are pushed away for ever.",
            (lower_rate(run), more_kl(run)),
        )
        return Examination("gradients", (finding,))
    share = 0.0 if limit is None else float((late.values > limit).mean())
    if share > ALWAYS_CLIPPED:
        finding = Finding(
            "gradient-always-clipped",
            "note",
            "The gradient is longer than max_grad_norm in nearly every update.",
            (late.said("grad_norm: median"), f"optimiser.max_grad_norm is {limit:g} (config.yaml)"),
            "AdamW hardly minds a constant factor, but then the limit protects from nothing: it is below the usual.",
            (Change("optimiser.max_grad_norm", limit, rounded(3 * late.median)),),
        )
        return Examination("gradients", (finding,))
    return Examination("gradients", fine=late.brief("norm"))


def skipped_updates(run: Facts) -> Examination:
    """Whether updates are lost to non-finite values."""
    series = run.series("skipped_updates")
    if not series.known or not series.whole.values[-1]:
        return Examination("skipped updates", fine="no update was skipped")
    skipped = int(series.whole.values[-1])
    total = skipped + int(run.series("updates").whole.values[-1]) if run.series("updates").known else skipped
    autocast = run.config.precision.autocast
    finding = Finding(
        "updates-skipped",
        "problem" if skipped / total > MANY_SKIPPED else "warning",
        f"{skipped} of {total} updates were skipped for non-finite losses or gradients.",
        (f"skipped_updates is {skipped} (metrics.jsonl, iteration {int(run.data.iterations[-1])})",),
        "Half precision overflows, or the weights have left the range in which the model works.",
        (
            lower_rate(run),
            *([Change("precision.autocast", "bf16", "no")] if autocast == "bf16" else []),
        ),
    )
    return Examination("skipped updates", (finding,))
