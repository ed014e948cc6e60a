"""Blurred outputs and artifacts: timesteps below what the sampler resolves, and media whose detail changes.

Samples from a few solver steps are wrong in their finest details, and the loss at small sigma compares exactly those
details. The paper reports that the model then learns the artifacts, and bounds the timesteps from below (t_min).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dgpo_core.flow.velocity import unshift_sigma
from dgpo_lab.doctoring.facts import Facts, below
from dgpo_lab.doctoring.findings import Change, figure, percent
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.reporting.data import Evaluation
from dgpo_lab.reporting.summary import scored
from dgpo_schemas.sigma import resolve_sigma
from dgpo_schemas.text import shell_word

__all__ = ["DETAIL", "DISAGREEMENT", "OF_DETAIL", "T_MIN", "evaluated", "later_t_min", "resolved_sigma"]

UNCLIPPED = 0.05
"""A t_min up to this value counts as no bound: so close to the data, only the finest detail is noised. The paper's
ablation without a bound uses 0; every published setting is 0.56 or above."""
SHARE_BELOW = 0.1
"""Fraction of the training timesteps below what the sampler resolves that is more than a rounding margin."""
CHANGED = 0.25
"""Relative change of a detail statistic that is reported: in runs whose images improved it changed by up to 0.2."""
LOST = 0.5
"""The default tolerance of the monitors, for changes that are certain."""
APART = 0.25
"""Relative increase of the distance between few-step and many-step samples that is reported. The base model already has
such a distance, and a model that only improves keeps it."""
OF_DETAIL = ("many_step_sharpness", "sharpness", "edge_density")
"""Evaluation statistics that fall with blur and rise with ringing and noise."""
MANY_STEP = (
    "set evaluation.many_step to {steps: 40}, which also measures the distance between few-step and many-step samples"
)
WHY = (
    "Samples from a few solver steps are wrong in their finest details, and the loss at small sigma trains on those "
    "details. The paper reports that the model learns these artifacts, and sets t_min to shift(0.3); its code uses "
    "0.67 to 0.82 (arXiv 2510.08425). On the miniature, values of t_min up to shift(0.5) made no measurable "
    "difference (docs/experiments/e2.md)."
)


def resolved_sigma(times: Sequence[float]) -> float:
    """Return the smallest sigma that the sampler resolves: the start of its last full solver step.

    `times` are the sampler's sigmas, descending to 0. A single step covers everything below the result. Sigmas closer
    to 0 than half an even step are ignored: flow-euler visits one near 0.004 after a full step, which resolves nothing.
    """
    steps = len(times) - 1
    return min(time for time in times if time >= 0.5 / steps)


def later_t_min(run: Facts, at_least: float) -> Change | None:
    """Suggest the first of shift(0.3), shift(0.4), ... that is at least `at_least` and above the present t_min.

    Returns None if t_max leaves no such value.
    """
    assert run.times is not None
    shift, t_min, t_max = run.times.shift, run.times.t_min, run.times.t_max
    for tenth in range(3, 10):
        expression = f"shift({tenth / 10})"
        if max(at_least, t_min + 1e-9) <= resolve_sigma(expression, shift) < t_max:
            present = run.config.timesteps.t_min
            shown = present if isinstance(present, str) else float(present)
            return Change("timesteps.t_min", shown, expression)
    return None


def _raised(run: Facts, _: object = None) -> tuple[Change, ...]:
    """Suggest a t_min one tenth higher on the unshifted scale; with `sampler-steps`, also a smaller count if needed."""
    if run.times is None:
        return ()
    shift, t_min, t_max = run.times.shift, run.times.t_min, run.times.t_max
    unshifted = unshift_sigma(t_min, shift)
    following = resolve_sigma(f"shift({min(0.9, math.floor(unshifted * 10 + 1e-6) / 10 + 0.1):.1f})", shift)
    change = later_t_min(run, following - 1e-9)
    if change is None:
        return ()
    times, section = run.components.times, run.config.timesteps
    if section.use != "sampler-steps" or times is None:
        return (change,)
    left = sum(resolve_sigma(change.suggested, shift) <= time <= t_max for time in times)
    return (change, Change("timesteps.count", section.count, left)) if 0 < left < section.count else (change,)


def _times(run: Facts) -> Values | str:
    """Whether the training timesteps stay above what the sampler resolves."""
    if run.components.needs_path:
        return Values(trusted=True, fine=f"{run.config.objective.use} trains on the sampler's own steps")
    if run.components.needs_path is None:
        return f"{run.config.objective.use} is not installed here"
    if run.times is None:
        return "run.json does not record the model's shift, and rollout.shift is auto"
    t_min, t_max, where = run.times.t_min, run.times.t_max, "config.yaml"
    drawn, smallest = run.series("timesteps.t_min"), run.series("t_min")
    if drawn.known:  # an adaptive timestep policy samples above the configured bound
        t_min, where = drawn.late.median, drawn.late.where
    evidence = [f"training timesteps start at sigma {figure(t_min)} ({where})"]
    if smallest.known:
        least = figure(float(smallest.whole.values.min()))
        evidence.append(f"smallest sampled timestep: {least} ({smallest.whole.where})")
    times, rollout, resolved, share = run.components.times, run.config.rollout, 0.0, 0.0
    if times is not None:
        resolved = resolved_sigma(times)
        evidence.append(
            f"{rollout.sampler.use} with {rollout.steps} steps at shift {run.times.shift:.4g} resolves sigma down to "
            f"{figure(resolved)}; a single step covers everything below"
        )
        if run.config.timesteps.use == "sampler-steps":
            inside = [time for time in times if time > 0 and t_min <= time <= t_max]
            share = sum(time < resolved for time in inside) / max(1, len(inside))
        else:
            share = min(1.0, max(0.0, (resolved - t_min) / (t_max - t_min)))
        evidence.append(f"training timesteps below that sigma: {percent(share)}")
    limit = f"; {rollout.steps} steps resolve {figure(resolved)}" if resolved else ""
    return Values(
        trusted=False, t_min=t_min, resolved=resolved, share=share, evidence=evidence,
        fine=f"timesteps from sigma {figure(t_min)}{limit}",
    )  # fmt: skip


def _clipped(run: Facts, v: Values) -> Iterable[Change]:
    change = later_t_min(run, v.resolved)
    return () if change is None else (change,)


T_MIN = Subject("t_min", _times, "{fine}", (
    Rule(
        "t-min-too-low", "problem",
        "The training timesteps have no lower bound: they start at sigma {t_min}.", WHY,
        lambda v: not v.trusted and v.t_min <= UNCLIPPED, _clipped,
    ),
    Rule(
        "t-min-too-low", lambda v: "warning" if v.share >= SHARE_BELOW else "note",
        "{share:%} of the training timesteps are below what the sampler resolves (sigma {resolved}).", WHY,
        lambda v: not v.trusted and v.share > 0, _clipped,
        ("or increase rollout.steps: more steps resolve smaller timesteps",),
    ),
))  # fmt: skip


def _moved(found: Sequence[Evaluation]) -> float:
    """Return the relative change from the first to the last evaluation; 0 if the intervals overlap."""
    first, last = found[0].score, found[-1].score
    apart = below(first, last) or below(last, first)
    return (last.value - first.value) / abs(first.value) if apart and first.value else 0.0


def _went(found: Sequence[Evaluation]) -> str:
    return f"{figure(found[0].score.value)} to {figure(found[-1].score.value)}"


def evaluated(found: Sequence[Evaluation]) -> str:
    """Return a line of evidence: the first and last values of an evaluated metric, with their source."""
    return (
        f"{found[0].reward} went from {scored(found[0].score, 3)} to {scored(found[-1].score, 3)} "
        f"(evaluations.jsonl, iterations {found[0].iteration} and {found[-1].iteration})"
    )


def _detail(run: Facts) -> Values | str:
    """Whether the media lose or gain detail in the evaluations; without evaluations, in the rollouts."""
    found = [run.data.statistics[name] for name in OF_DETAIL if len(run.data.statistics.get(name, ())) > 1]
    if found:
        most = max(found, key=lambda each: abs(_moved(each)))
        move, evidence, fine = _moved(most), [evaluated(each) for each in found], f"{most[0].reward} {_went(most)}"
    else:
        series = run.series("statistics.edge_density")
        if not series.enough:
            return "needs two evaluations or nine iterations"
        early, late = series.early, series.late
        # The prompts of rollouts change every iteration, so only changes beyond the monitors' tolerance count.
        move = late.median / early.median - 1 if early.median else 0.0
        move = move if abs(move) > LOST else 0.0
        evidence = [early.evidence("edge_density of the rollouts: median"), late.evidence("last third:")]
        fine = f"edge_density of the rollouts {figure(early.median)} to {figure(late.median)}"
    return Values(
        move=move, size=abs(move), sure=abs(move) > LOST and bool(found), run=shell_word(str(run.data.path)),
        many_step=MANY_STEP if run.config.evaluation.many_step is None else "", fine=fine, evidence=evidence,
    )  # fmt: skip


LOOK = ("compare the images of the first and the last evaluation side by side: dgpo report {run}", "{many_step}")

DETAIL = Subject("detail", _detail, "{fine}", (
    Rule(
        "blurred-outputs", lambda v: "problem" if v.sure else "warning",
        "The outputs lost {size:%} of their detail: they are blurred, or nearly empty.", WHY,
        lambda v: v.move < -CHANGED, _raised, LOOK,
    ),
    Rule(
        "artifacts", lambda v: "problem" if v.sure else "warning",
        "The outputs gained {size:%} of detail: artifacts, unless they show more content.", WHY,
        lambda v: v.move > CHANGED, _raised, LOOK,
    ),
))  # fmt: skip


def _disagreement(run: Facts) -> Values | str:
    """Whether few-step samples move away from many-step samples of the same noise."""
    found = run.data.statistics.get("step_disagreement", ())
    if len(found) < 2:
        return "needs two evaluations" if found else ""
    return Values(move=_moved(found), fine=_went(found), evidence=[evaluated(found)])


DISAGREEMENT = Subject("step disagreement", _disagreement, "{fine}", (
    Rule(
        "few-step-artifacts", "problem",
        "Few-step samples move away from many-step samples: the model learns artifacts of the sampler.", WHY,
        lambda v: v.move > APART, _raised,
    ),
))  # fmt: skip
