"""Reward hacking: monitors that leave their tolerances, diversity that is lost, training prompts learned by heart."""

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
    "Reward up while what is not rewarded gets worse is reward hacking: the policy finds what the reward overlooks "
    "(arXiv 2510.08425 follows out-of-domain metrics for it)."
)
KEPT = 1 - STATISTICS["diversity"].tolerance
"""Share of the first diversity that must be left: the monitors' default tolerance, for runs whose evaluations measure
none."""

NO_REWARD = "; no reward among them"

ELSEWHERE = ("diversity", "step_disagreement", *OF_DETAIL)
"""Guards that have examinations of their own."""


def _rows(run: Facts) -> list[MonitorRow]:
    """Guards by the rules of the run's own alarms; statistics that have no tolerance are not monitors."""
    known = {name: found for name, found in run.data.statistics.items() if name in STATISTICS}
    return monitor_rows(replace(run.data, statistics=known))


def _rose(run: Facts) -> bool:
    """Whether the target is above its first evaluation, as the alarms ask."""
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
    """Whether a monitor left its tolerance, and whether the target rose meanwhile."""
    if len(run.target) < 2:
        return "" if run.config.prompts.heldout is None else "it needs two evaluations"
    rows = [row for row in _rows(run) if row.name not in ELSEWHERE]
    left = [row for row in rows if row.left]
    named, also = ", ".join(row.name for row in rows), "" if run.config.evaluation.monitors.rewards else NO_REWARD
    if not left:
        return Values(left=0, fine=f"within their tolerances: {named}{also}" if rows else f"none is logged{also}")
    lines = [_line(row, run.target[-1].iteration) for row in left]
    return Values(
        left=len(left), rose=_rose(run), names=_names(left),
        tolerances="its tolerance" if len(left) == 1 else "their tolerances",
        run=shell_word(str(run.data.path)), seen=[evaluated(run.target), *lines],
    )  # fmt: skip


def _stopped(run: Facts, _: Values) -> Iterable[Change]:
    yield more_kl(run)
    if (alarm := run.config.evaluation.monitors.alarm) != "stop":
        yield Change("evaluation.monitors.alarm", alarm, "stop")


LOOK = (
    "look at the images: dgpo report {run}",
    "or reward what it lost: put the monitor among the rewards, with a small weight",
)

MONITORS = Subject("monitors", _monitors, "{fine}", (
    Rule(
        "reward-hacking", "problem",
        "{names} left {tolerances} while the target rose: a sign of reward hacking.", WHY,
        lambda v: v.left and v.rose, _stopped, LOOK,
    ),
    Rule(
        "monitor-left-its-tolerance", "warning",
        "{names} left {tolerances}, and the target has not even risen.", WHY, lambda v: bool(v.left), _stopped, LOOK,
    ),
))  # fmt: skip


def _diversity(run: Facts) -> Values | str:
    """Whether samples of one prompt become alike."""
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
        line = f"{series.early.said('within training groups: median')}; {series.late.said('later')}"
    gone = 1 - after / before if before else 0.0
    return Values(lost=lost, before=before, after=after, gone=gone, seen=[line])


DIVERSITY = Subject("diversity", _diversity, "{before} to {after}", (
    Rule(
        "diversity-collapse", "problem",
        "Samples of one prompt become alike: {gone:%} of their distance is gone.",
        "Groups of equal members have no preference, and a model that draws one image a prompt is hacked or drifted.",
        lambda v: v.lost, lambda run, _: (more_kl(run),),
        ("or stop earlier; rollout.guidance above 1 also narrows what is drawn",),
    ),
))  # fmt: skip


def _heldout(run: Facts) -> Values | str:
    """Whether the held-out score falls, and whether training goes on rising meanwhile."""
    if run.config.prompts.heldout is None:
        return Values(none=True, seen=["prompts.heldout is null (config.yaml)"])
    if len(run.target) < 2:
        return "it needs two evaluations"
    best, first, last, series = run.best, run.target[0], run.target[-1], run.series("reward.mean")
    seen = [
        f"{best.reward} was {scored(best.score, 3)} and is {scored(last.score, 3)} (evaluations.jsonl, iterations "
        f"{best.iteration} and {last.iteration})"
    ]
    if series.known:
        seen.append(
            f"{series.early.said('the training reward: median')}; {series.late.said('later')}; "
            f"trend z {series.trend():+.1f}"
        )
    kept = f"the best checkpoint is kept: dgpo export {shell_word(str(run.data.path))} --checkpoint best"
    return Values(
        none=False, fell=run.heldout_fell, rising=series.enough and series.trend() >= CLEAR,
        kept=kept if run.config.checkpoints.best else "",
        fine=f"{first.reward} {figure(first.score.value)} to {figure(last.score.value)}", seen=seen,
    )  # fmt: skip


HELDOUT = Subject("held-out score", _heldout, "{fine}", (
    Rule(
        "nothing-held-out", "note",
        "Nothing is evaluated: there are no held-out prompts.",
        "Reward hacking and prompts learned by heart show only on prompts that are not trained on.",
        lambda v: v.none, advice=("set prompts.heldout to a file, and evaluation.every",),
    ),
    Rule(
        "overfitting", "problem",
        "The held-out score falls while the training reward rises.",
        "What is learned holds for the training prompts, or for the training reward, only.",
        lambda v: v.fell and v.rising, held, ("{kept}", "more prompts in prompts.train"),
    ),
    Rule(
        "held-out-falling", "problem",
        "The held-out score has fallen from its best.",
        "Updates undo what was learned: steps too large, or a policy that left its reference.",
        lambda v: v.fell, held, ("{kept}",),
    ),
))  # fmt: skip
