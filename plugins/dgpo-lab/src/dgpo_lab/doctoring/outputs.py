"""Blurred outputs and artifacts: times below what the sampler resolves, and media whose detail changes.

Rollouts of a few steps are wrong in their finest detail. Where the loss is taken at small sigma, that detail is
what it compares; the paper reports that the model then learns the artifacts, and clips the times from below (t_min).
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
"""A t_min up to here leaves the times unclipped: so close to the data only the finest detail is noised. The paper's
run without a clip has t_min 0; every published setting lies at 0.56 or above."""
SHARE_BELOW = 0.1
"""Share of the training times below what the sampler resolves that is more than a margin of rounding."""
CHANGED = 0.25
"""Relative change of a statistic of detail that is worth a look: runs that learned to draw better moved theirs by
up to 0.2."""
LOST = 0.5
"""The default tolerance of the monitors: beyond it the media are other media."""
APART = 0.25
"""Relative rise of the distance between samples in few and in many steps that is more than a model that moves: the
distance is that of the base model at the start, and a model that only gets better keeps it."""
OF_DETAIL = ("many_step_sharpness", "sharpness", "edge_density")
"""Statistics of evaluations that fall with blur and rise with ringing and noise."""
MANY_STEP = "evaluation.many_step: {steps: 40} also measures how far samples in few steps lie from samples in many"
WHY = (
    "Few-step samples are wrong in their finest detail, and a loss at small sigma is about that. The paper reports "
    "that the model learns it, and clips t_min at shift(0.3), its code between 0.67 and 0.82 (arXiv 2510.08425); on "
    "the miniature no t_min up to shift(0.5) could be told from another (docs/experiments/e2.md)."
)


def resolved_sigma(times: Sequence[float]) -> float:
    """The smallest time that the sampler resolves: where its last whole step begins.

    Below it everything comes from one step. Times closer to 0 than half an even step do not count: flow-euler visits
    one near 0.004 after a whole step, which resolves nothing.
    """
    steps = len(times) - 1
    return min(time for time in times if time >= 0.5 / steps)


def later_t_min(run: Facts, at_least: float) -> Change | None:
    """The first of shift(0.3), shift(0.4), ... that is at least so large and above the present setting; None if t_max
    leaves none."""
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
    """t_min a tenth later on the unshifted scale, and with `sampler-steps` no more times than are left above it."""
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
    """Whether the loss is taken where the sampler's samples can be trusted."""
    if run.components.needs_path:
        return Values(trusted=True, fine=f"{run.config.objective.use} learns from the sampler's own steps")
    if run.components.needs_path is None:
        return f"{run.config.objective.use} is not installed here"
    if run.times is None:
        return "run.json does not say which shift the model has, and rollout.shift: auto leaves it to the model"
    t_min, t_max, where = run.times.t_min, run.times.t_max, "config.yaml"
    drawn, smallest = run.series("timesteps.t_min"), run.series("t_min")
    if drawn.known:  # an adaptive policy draws above the configured bound
        t_min, where = drawn.late.median, drawn.late.where
    seen = [f"times are drawn from sigma {figure(t_min)} on ({where})"]
    if smallest.known:
        least = figure(float(smallest.whole.values.min()))
        seen.append(f"the smallest that was drawn: {least} ({smallest.whole.where})")
    times, rollout, resolved, share = run.components.times, run.config.rollout, 0.0, 0.0
    if times is not None:
        resolved = resolved_sigma(times)
        seen.append(
            f"{rollout.sampler.use} resolves sigma {figure(resolved)} in {rollout.steps} steps at shift "
            f"{run.times.shift:.4g}: below it, one step does it all"
        )
        if run.config.timesteps.use == "sampler-steps":
            inside = [time for time in times if time > 0 and t_min <= time <= t_max]
            share = sum(time < resolved for time in inside) / max(1, len(inside))
        else:
            share = min(1.0, max(0.0, (resolved - t_min) / (t_max - t_min)))
        seen.append(f"share of the training times below it: {percent(share)}")
    said = f"; {rollout.steps} steps resolve {figure(resolved)}" if resolved else ""
    return Values(
        trusted=False, t_min=t_min, resolved=resolved, share=share, seen=seen,
        fine=f"times from sigma {figure(t_min)} on{said}",
    )  # fmt: skip


def _clipped(run: Facts, v: Values) -> Iterable[Change]:
    change = later_t_min(run, v.resolved)
    return () if change is None else (change,)


T_MIN = Subject("t_min", _times, "{fine}", (
    Rule(
        "t-min-too-low", "problem",
        "The training times are not clipped from below.", WHY,
        lambda v: not v.trusted and v.t_min <= UNCLIPPED, _clipped,
    ),
    Rule(
        "t-min-too-low", lambda v: "warning" if v.share >= SHARE_BELOW else "note",
        "Part of the training times lies below what the sampler resolves.", WHY,
        lambda v: not v.trusted and v.share > 0, _clipped,
        ("or more rollout.steps, which resolve smaller times",),
    ),
))  # fmt: skip


def _moved(found: Sequence[Evaluation]) -> float:
    """Relative change from the first to the last evaluation; 0 where the intervals overlap."""
    first, last = found[0].score, found[-1].score
    apart = below(first, last) or below(last, first)
    return (last.value - first.value) / abs(first.value) if apart and first.value else 0.0


def _went(found: Sequence[Evaluation]) -> str:
    return f"{figure(found[0].score.value)} to {figure(found[-1].score.value)}"


def evaluated(found: Sequence[Evaluation]) -> str:
    """What the reward was and is, with its place."""
    return (
        f"{found[0].reward} went from {scored(found[0].score, 3)} to {scored(found[-1].score, 3)} "
        f"(evaluations.jsonl, iterations {found[0].iteration} and {found[-1].iteration})"
    )


def _detail(run: Facts) -> Values | str:
    """Whether the media lose their detail, or gain what looks like it: in evaluations, else in the rollouts."""
    found = [run.data.statistics[name] for name in OF_DETAIL if len(run.data.statistics.get(name, ())) > 1]
    if found:
        most = max(found, key=lambda each: abs(_moved(each)))
        move, seen, fine = _moved(most), [evaluated(each) for each in found], f"{most[0].reward} {_went(most)}"
    else:
        series = run.series("statistics.edge_density")
        if not series.enough:
            return "it needs two evaluations, or nine iterations"
        early, late = series.early, series.late
        # Rollouts are of other prompts every time, so only a change beyond the monitors' tolerance counts.
        move = late.median / early.median - 1 if early.median else 0.0
        move = move if abs(move) > LOST else 0.0
        seen = [early.said("edge_density of the rollouts: median"), late.said("later")]
        fine = f"edge_density of the rollouts {figure(early.median)} to {figure(late.median)}"
    return Values(
        move=move, size=abs(move), sure=abs(move) > LOST and bool(found), run=shell_word(str(run.data.path)),
        many_step=MANY_STEP if run.config.evaluation.many_step is None else "", fine=fine, seen=seen,
    )  # fmt: skip


LOOK = ("look at the images of the first and the last evaluation, side by side: dgpo report {run}", "{many_step}")

DETAIL = Subject("detail", _detail, "{fine}", (
    Rule(
        "blurred-outputs", lambda v: "problem" if v.sure else "warning",
        "The media lose {size:%} of their detail: they blur, or become empty.", WHY,
        lambda v: v.move < -CHANGED, _raised, LOOK,
    ),
    Rule(
        "artifacts", lambda v: "problem" if v.sure else "warning",
        "The media gain {size:%} of detail: artifacts, unless more is drawn.", WHY,
        lambda v: v.move > CHANGED, _raised, LOOK,
    ),
))  # fmt: skip


def _disagreement(run: Facts) -> Values | str:
    """Whether samples in the rollouts' steps move away from samples in many steps of the same noise."""
    found = run.data.statistics.get("step_disagreement", ())
    if len(found) < 2:
        return "it needs two evaluations" if found else ""
    return Values(move=_moved(found), fine=_went(found), seen=[evaluated(found)])


DISAGREEMENT = Subject("step disagreement", _disagreement, "{fine}", (
    Rule(
        "few-step-artifacts", "problem",
        "Samples in few steps move away from samples in many: artifacts of the steps are learned.", WHY,
        lambda v: v.move > APART, _raised,
    ),
))  # fmt: skip
