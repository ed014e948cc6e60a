"""Reward hacking: guards that leave their bands, diversity that is lost, training prompts learnt by heart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dgpo_core.training.guards import STATISTICS
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, figure
from dgpo_lab.doctoring.outputs import OF_DETAIL, evaluated
from dgpo_lab.doctoring.remedies import held, more_kl
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import CLEAR
from dgpo_lab.reporting.summary import GuardRow, guard_rows, scored
from dgpo_schemas.text import shell_word

__all__ = ["DIVERSITY", "GUARDS", "HELDOUT"]

WHY = (
    "Reward up while what is not rewarded gets worse is reward hacking: the policy finds what the reward overlooks "
    "(arXiv 2510.08425 follows out-of-domain metrics for it)."
)
KEPT = 1 - STATISTICS["diversity"].band
"""Share of the first diversity that must be left: the guards' default band, for runs whose evaluations measure none."""

NO_REWARD = "; no reward among them"

ELSEWHERE = ("diversity", "step_disagreement", *OF_DETAIL)
"""Guards that have examinations of their own."""


def _rows(run: Facts) -> list[GuardRow]:
    """Guards by the rules of the run's own alarms; statistics that have no band are not guards."""
    known = {name: found for name, found in run.data.statistics.items() if name in STATISTICS}
    return guard_rows(replace(run.data, statistics=known))


def _rose(run: Facts) -> bool:
    """Whether the target is above its first evaluation, as the alarms ask."""
    return len(run.target) > 1 and run.target[-1].score.value > run.target[0].score.value


def _line(row: GuardRow, last: int) -> str:
    after = row.before if row.after is None else row.after
    return (
        f"{row.name} went from {scored(row.before, 3)} to {scored(after, 3)}, band {figure(row.band)} "
        f"(evaluations.jsonl, iterations 0 and {last})"
    )


def _names(rows: list[GuardRow]) -> str:
    names = [row.name for row in rows]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _guards(run: Facts) -> Values | str:
    """Whether a guard left its band, and whether the target rose meanwhile."""
    if len(run.target) < 2:
        return "" if run.config.prompts.heldout is None else "it needs two evaluations"
    rows = [row for row in _rows(run) if row.name not in ELSEWHERE]
    left = [row for row in rows if row.left]
    named, also = ", ".join(row.name for row in rows), "" if run.config.evaluation.guards.rewards else NO_REWARD
    if not left:
        return Values(left=0, fine=f"within their bands: {named}{also}" if rows else f"none is logged{also}")
    lines = [_line(row, run.target[-1].iteration) for row in left]
    return Values(
        left=len(left), rose=_rose(run), names=_names(left), bands="its band" if len(left) == 1 else "their bands",
        run=shell_word(str(run.data.path)), seen=[evaluated(run.target), *lines],
    )  # fmt: skip


def _stopped(run: Facts, _: Values) -> Iterable[Change]:
    yield more_kl(run)
    if (alarm := run.config.evaluation.guards.alarm) != "stop":
        yield Change("evaluation.guards.alarm", alarm, "stop")


LOOK = (
    "look at the pictures: dgpo report {run}",
    "or reward what it lost: put the guard among the rewards, with a small weight",
)

GUARDS = Subject("guards", _guards, "{fine}", (
    Rule(
        "reward-hacking", "problem",
        "{names} left {bands} while the target rose: a sign of reward hacking.", WHY,
        lambda v: v.left and v.rose, _stopped, LOOK,
    ),
    Rule(
        "guard-left-its-band", "warning",
        "{names} left {bands}, and the target has not even risen.", WHY, lambda v: bool(v.left), _stopped, LOOK,
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
        "Groups of equal members have no preference, and a model that draws one picture a prompt is hacked or drifted.",
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
        "Reward hacking and prompts learnt by heart show only on prompts that are not trained on.",
        lambda v: v.none, advice=("set prompts.heldout to a file, and evaluation.every",),
    ),
    Rule(
        "overfitting", "problem",
        "The held-out score falls while the training reward rises.",
        "What is learnt holds for the training prompts, or for the training reward, only.",
        lambda v: v.fell and v.rising, held, ("{kept}", "more prompts in prompts.train"),
    ),
    Rule(
        "held-out-falling", "problem",
        "The held-out score has fallen from its best.",
        "Updates undo what was learnt: steps too large, or a policy that left its reference.",
        lambda v: v.fell, held, ("{kept}",),
    ),
))  # fmt: skip
