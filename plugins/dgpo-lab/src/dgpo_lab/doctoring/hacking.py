"""Reward hacking: guards that leave their bands, diversity that is lost, training prompts learnt by heart."""

from __future__ import annotations

from dataclasses import replace

from dgpo_core.training.guards import STATISTICS
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding, figure, percent
from dgpo_lab.doctoring.outputs import OF_DETAIL
from dgpo_lab.doctoring.remedies import lower_rate, more_kl
from dgpo_lab.doctoring.trends import CLEAR
from dgpo_lab.reporting.data import Evaluation
from dgpo_lab.reporting.summary import GuardRow, guard_rows, scored
from dgpo_schemas.text import shell_word

__all__ = ["diversity", "guards", "heldout"]

WHY = (
    "Reward up while what is not rewarded gets worse is reward hacking: the policy finds what the reward overlooks "
    "(arXiv 2510.08425 follows out-of-domain metrics for it)."
)
KEPT = 1 - STATISTICS["diversity"].band
"""Share of the first diversity that must be left: the guards' default band, for runs whose evaluations measure none."""

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


def _target_line(found: list[Evaluation]) -> str:
    first, last = found[0], found[-1]
    return (
        f"{first.reward} went from {scored(first.score, 3)} to {scored(last.score, 3)} (evaluations.jsonl, iterations "
        f"{first.iteration} and {last.iteration})"
    )


def guards(run: Facts) -> Examination:
    """Whether a guard left its band, and whether the target rose meanwhile."""
    if len(run.target) < 2:
        return Examination("guards", open="" if run.config.prompts.heldout is None else "it needs two evaluations")
    rows = [row for row in _rows(run) if row.name not in ELSEWHERE]
    left = [row for row in rows if row.left]
    if not left:
        named = ", ".join(row.name for row in rows)
        rewards = run.config.evaluation.guards.rewards
        also = "" if rewards else "; no reward among them"
        return Examination("guards", fine=f"within their bands: {named}{also}" if rows else f"none is logged{also}")
    last = run.target[-1].iteration
    rose, alarm = _rose(run), run.config.evaluation.guards.alarm
    finding = Finding(
        "reward-hacking" if rose else "guard-left-its-band",
        "problem" if rose else "warning",
        f"{_names(left)} left {'its band' if len(left) == 1 else 'their bands'}"
        + (" while the target rose: a sign of reward hacking." if rose else ", and the target has not even risen."),
        (_target_line(list(run.target)), *(_line(row, last) for row in left)),
        WHY,
        (
            more_kl(run),
            *([Change("evaluation.guards.alarm", alarm, "stop")] if alarm != "stop" else []),
        ),
        (
            f"look at the pictures: dgpo report {shell_word(str(run.data.path))}",
            "or reward what it lost: put the guard among the rewards, with a small weight",
        ),
    )
    return Examination("guards", (finding,))


def _names(rows: list[GuardRow]) -> str:
    names = [row.name for row in rows]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def diversity(run: Facts) -> Examination:
    """Whether samples of one prompt become alike."""
    row = next((row for row in _rows(run) if row.name == "diversity" and row.after is not None), None)
    if row is not None:
        lost = row.left
        assert row.after is not None
        before, after = row.before.value, row.after.value
        line = _line(row, run.data.statistics["diversity"][-1].iteration)
    else:
        series = run.series("diversity")
        if not series.enough:
            return Examination("diversity", open=run.too_few())
        before, after = series.early.median, series.late.median
        lost = after < KEPT * before
        line = f"{series.early.said('within training groups: median')}; {series.late.said('later')}"
    if not lost:
        return Examination("diversity", fine=f"{figure(before)} to {figure(after)}")
    finding = Finding(
        "diversity-collapse",
        "problem",
        f"Samples of one prompt become alike: {percent(1 - after / before)} of their distance is gone.",
        (line,),
        "Groups of equal members have no preference, and a model that draws one picture a prompt is hacked or drifted.",
        (more_kl(run),),
        ("or stop earlier; rollout.guidance above 1 also narrows what is drawn",),
    )
    return Examination("diversity", (finding,))


def heldout(run: Facts) -> Examination:
    """Whether the held-out score falls, and whether training goes on rising meanwhile."""
    if run.config.prompts.heldout is None:
        finding = Finding(
            "nothing-held-out",
            "note",
            "Nothing is evaluated: there are no held-out prompts.",
            ("prompts.heldout is null (config.yaml)",),
            "Reward hacking and prompts learnt by heart show only on prompts that are not trained on.",
            advice=("set prompts.heldout to a file, and evaluation.every",),
        )
        return Examination("held-out score", (finding,))
    if len(run.target) < 2:
        return Examination("held-out score", open="it needs two evaluations")
    best, last = run.best, run.target[-1]
    if not run.heldout_fell:
        first = run.target[0]
        return Examination(
            "held-out score", fine=f"{first.reward} {figure(first.score.value)} to {figure(last.score.value)}"
        )
    series = run.series("reward.mean")
    rising = series.enough and series.trend() >= CLEAR
    kept = run.config.checkpoints.best
    seen = [
        f"{best.reward} was {scored(best.score, 3)} and is {scored(last.score, 3)} (evaluations.jsonl, iterations "
        f"{best.iteration} and {last.iteration})"
    ]
    if series.known:
        seen.append(
            f"{series.early.said('the training reward: median')}; {series.late.said('later')}; "
            f"trend z {series.trend():+.1f}"
        )
    finding = Finding(
        "overfitting" if rising else "held-out-falling",
        "problem",
        "The held-out score falls while the training reward rises."
        if rising
        else "The held-out score has fallen from its best.",
        seen,
        "What is learnt holds for the training prompts, or for the training reward, only."
        if rising
        else "Updates undo what was learnt: steps too large, or a policy that left its reference.",
        (more_kl(run), lower_rate(run)),
        (
            *([f"the best checkpoint is kept: dgpo export {run.data.path} --checkpoint best"] if kept else []),
            *(["more prompts in prompts.train"] if rising else []),
        ),
    )
    return Examination("held-out score", (finding,))
