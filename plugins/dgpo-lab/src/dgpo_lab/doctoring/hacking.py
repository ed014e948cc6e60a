"""Reward hacking and overfitting: monitors out of tolerance, lost diversity, falling held-out scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dgpo_core.training.monitors import STATISTICS
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, figure
from dgpo_lab.doctoring.outputs import OF_DETAIL, evaluated
from dgpo_lab.doctoring.remedies import held, more_kl
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import CLEAR
from dgpo_lab.reporting.summary import MonitorRow, monitor_rows, scored
from dgpo_schemas.text import shell_word

__all__ = ["DIVERSITY", "HELDOUT", "MONITORS"]

WHY = (
    "A reward that rises while qualities that it does not measure get worse is a sign of reward hacking: the policy "
    "exploits what the reward overlooks. The paper tracks out-of-domain metrics for this reason (arXiv 2510.08425)."
)
KEPT = 1 - STATISTICS["diversity"].tolerance
"""Fraction of the initial diversity that must remain: the monitors' default tolerance, for runs whose evaluations do
not measure diversity."""

NO_REWARD = "; no reward is monitored"

ELSEWHERE = ("diversity", "step_disagreement", *OF_DETAIL)
"""Monitors that have their own examinations."""


def _rows(run: Facts) -> list[MonitorRow]:
    """Return the monitors, judged by the rules of the run's own alarms; statistics without a tolerance are excluded."""
    known = {name: found for name, found in run.data.statistics.items() if name in STATISTICS}
    return monitor_rows(replace(run.data, statistics=known))


def _rose(run: Facts) -> bool:
    """Return whether the target is above its first evaluation, as the alarms require."""
    return len(run.target) > 1 and run.target[-1].score.value > run.target[0].score.value


def _line(row: MonitorRow, last: int) -> str:
    after = row.before if row.after is None else row.after
    return (
        f"{row.name} went from {scored(row.before, 3)} to {scored(after, 3)}, tolerance {figure(row.tolerance)} "
        f"(evaluations.jsonl, iterations 0 and {last})"
    )


def _names(rows: list[MonitorRow]) -> str:
    names = [row.name for row in rows]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _monitors(run: Facts) -> Values | str:
    """Whether a monitor is out of tolerance, and whether the target rose."""
    if len(run.target) < 2:
        return "" if run.config.prompts.heldout is None else "needs two evaluations"
    rows = [row for row in _rows(run) if row.name not in ELSEWHERE]
    left = [row for row in rows if row.left]
    named, also = ", ".join(row.name for row in rows), "" if run.config.evaluation.monitors.rewards else NO_REWARD
    if not left:
        return Values(left=0, fine=f"within tolerance: {named}{also}" if rows else f"none is logged{also}")
    lines = [_line(row, run.target[-1].iteration) for row in left]
    return Values(
        left=len(left), rose=_rose(run), names=_names(left), copula="is" if len(left) == 1 else "are",
        run=shell_word(str(run.data.path)), evidence=[evaluated(run.target), *lines],
    )  # fmt: skip


def _stopped(run: Facts, _: Values) -> Iterable[Change]:
    yield more_kl(run)
    if (alarm := run.config.evaluation.monitors.alarm) != "stop":
        yield Change("evaluation.monitors.alarm", alarm, "stop")


LOOK = (
    "look at the images: dgpo report {run}",
    "or train on the monitor too: add it to the rewards with a small weight",
)

MONITORS = Subject("monitors", _monitors, "{fine}", (
    Rule(
        "reward-hacking", "problem",
        "{names} {copula} out of tolerance while the target reward rose: a sign of reward hacking.", WHY,
        lambda v: v.left and v.rose, _stopped, LOOK,
    ),
    Rule(
        "monitor-out-of-tolerance", "warning",
        "{names} {copula} out of tolerance, and the target reward did not rise.", WHY,
        lambda v: bool(v.left), _stopped, LOOK,
    ),
))  # fmt: skip


def _diversity(run: Facts) -> Values | str:
    """Whether samples of the same prompt become similar."""
    row = next((row for row in _rows(run) if row.name == "diversity" and row.after is not None), None)
    if row is not None:
        assert row.after is not None
        before, after, lost = row.before.value, row.after.value, row.left
        line = _line(row, run.data.statistics["diversity"][-1].iteration)
    else:
        series = run.series("diversity")
        if not series.enough:
            return run.too_few()
        before, after = series.early.median, series.late.median
        lost = after < KEPT * before
        line = f"{series.early.evidence('within training groups: median')}; {series.late.evidence('last third:')}"
    gone = 1 - after / before if before else 0.0
    return Values(lost=lost, before=before, after=after, gone=gone, evidence=[line])


DIVERSITY = Subject("diversity", _diversity, "{before} to {after}", (
    Rule(
        "diversity-collapse", "problem",
        "Diversity collapses: the distance between samples of the same prompt fell by {gone:%}.",
        "Groups of similar samples have no preference, and a model that generates a single image per prompt has "
        "drifted or exploits the reward.",
        lambda v: v.lost, lambda run, _: (more_kl(run),),
        ("or stop earlier; a rollout.guidance (guidance_scale) above 1 also reduces diversity",),
    ),
))  # fmt: skip


def _heldout(run: Facts) -> Values | str:
    """Whether the held-out score falls, and whether the training reward still rises."""
    if run.config.prompts.heldout is None:
        return Values(none=True, evidence=["prompts.heldout is null (config.yaml)"])
    if len(run.target) < 2:
        return "needs two evaluations"
    best, first, last, series = run.best, run.target[0], run.target[-1], run.series("reward.mean")
    evidence = [
        f"{best.reward} fell from {scored(best.score, 3)} to {scored(last.score, 3)} (evaluations.jsonl, iterations "
        f"{best.iteration} and {last.iteration})"
    ]
    if series.known:
        evidence.append(
            f"{series.early.evidence('training reward: median')}; {series.late.evidence('last third:')}; "
            f"trend z {series.trend():+.1f}"
        )
    kept = f"export the best checkpoint: dgpo export {shell_word(str(run.data.path))} --checkpoint best"
    return Values(
        none=False, fell=run.heldout_fell, rising=series.enough and series.trend() >= CLEAR,
        kept=kept if run.config.checkpoints.best else "",
        fine=f"{first.reward} {figure(first.score.value)} to {figure(last.score.value)}", evidence=evidence,
    )  # fmt: skip


HELDOUT = Subject("held-out score", _heldout, "{fine}", (
    Rule(
        "nothing-held-out", "note",
        "The run is not evaluated: there are no held-out prompts.",
        "Reward hacking and overfitting show only on prompts that are not trained on.",
        lambda v: v.none, advice=("set prompts.heldout to a file, and evaluation.every to a number of iterations",),
    ),
    Rule(
        "overfitting", "problem",
        "The held-out score falls while the training reward rises.",
        "The policy overfits to the training prompts or to the training reward.",
        lambda v: v.fell and v.rising, held, ("{kept}", "add prompts to prompts.train"),
    ),
    Rule(
        "held-out-falling", "problem",
        "The held-out score has fallen below its best value.",
        "Training undoes its progress: the optimizer steps are too large, or the policy is far from its reference.",
        lambda v: v.fell, held, ("{kept}",),
    ),
))  # fmt: skip
