"""Reward trouble: scores that are missing, rewards that say nothing, one that drowns the others, and slow ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dgpo_lab.doctoring.convergence import at_end
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, figure, percent
from dgpo_lab.doctoring.remedies import rounded
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import Series
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["CONSTANT", "DOMINATING", "MISSING", "RANGE", "WAITING"]

SOME_MISSING = 0.02
"""Share of samples without a score up to which a crash that was retried without effect explains them."""
MANY_MISSING = 0.1
"""Share from which groups are no longer those that were rolled out; the default limit that stops a run is 0.2."""
FEW = 3
"""Iterations in which a reward must have told samples apart once."""
ROUNDING = 1e-9
"""Standard deviation of a reward, in units of its size, that is rounding."""
DOMINATES = 0.9
"""Share of the summed spread that one reward has when the others hardly count."""
LONG = 0.25
"""Share of an iteration spent waiting for scores that a second worker would save."""
MOST = 64
"""Workers, and requests under way, that a run file may have."""
A_SECOND = 1.0
"""Seconds of waiting in an iteration below which nobody waits."""


def _missing(run: Facts) -> Values | None:
    """Whether samples go without a score."""
    series = run.series("missing_rewards")
    if not series.known:
        return None
    total, of, late = int(series.whole.values.sum()), series.known * run.samples, series.late
    seen = [
        f"{total} of {of} samples have no score, {percent(total / of)} ({series.whole.where})",
        late.said("of an iteration's lately: median", lambda value: percent(value / run.samples)),
    ]
    for block in run.config.rewards:
        own = run.reward(block.label, "missing")
        if own.known and own.whole.values.sum():
            seen.append(f"{block.label} is missing for {int(own.whole.values.sum())} of them")
    return Values(total=total, share=total / of, most=max(total / of, late.median / run.samples), seen=seen)


def _fewer_missing(run: Facts, _: Values) -> Iterable[Change]:
    if (limit := run.config.scoring.max_missing) > 0.05:
        yield Change("scoring.max_missing", limit, 0.05)


MISSING = Subject("missing scores", _missing, "every sample was scored", (
    Rule(
        "scores-missing",
        lambda v: "problem" if v.most > MANY_MISSING else "warning" if v.most > SOME_MISSING else "note",
        "{share:%} of the samples could not be scored.",
        "A sample without a score leaves its group; where scores are missing for a reason (empty, dark, unreadable "
        "media), what remains is a biased choice.",
        lambda v: v.total > 0, _fewer_missing,
        ("dgpo score --self-test NAME tells whether the reward works here; the run's messages name the reason",),
    ),
))  # fmt: skip


def _constant(run: Facts) -> Values | Sequence[Values] | str:
    """Whether every reward that counts tells samples apart."""
    if run.iterations < FEW:
        return run.too_few(FEW)
    silent = [block for block in run.weighed if _is_constant(run, block)]
    return [
        Values(
            silent=True, alone=len(silent) == len(run.weighed), block=block, label=block.label, use=block.use,
            seen=[
                run.reward(block.label, "std").late.said(f"std of {block.label}: median"),
                run.reward(block.label, "mean").late.said("its mean: median"),
            ],
        )
        for block in silent
    ] or Values(silent=False)  # fmt: skip


def _without(run: Facts, v: Values) -> Iterable[Change]:
    if not v.alone:
        yield Change(f"rewards.{run.config.rewards.index(v.block)}.weight", v.block.weight, 0.0)


def _is_constant(run: Facts, block: RewardBlock) -> bool:
    std, mean = run.reward(block.label, "std"), run.reward(block.label, "mean")
    if not std.known:
        return False
    size = max(1e-12, float(np.abs(mean.late.values).max())) if mean.known else 1.0
    return bool(std.late.values.max() <= ROUNDING * size)


CONSTANT = Subject("constant rewards", _constant, "every reward tells samples apart", (
    Rule(
        "reward-constant", lambda v: "problem" if v.alone else "warning",
        "{label} gives every sample the same value.",
        "Equal rewards make no preference: nothing is learned from this reward.",
        lambda v: v.silent, _without,
        ("dgpo score --self-test {use} tells whether it can tell good from bad, here and now",),
    ),
))  # fmt: skip


def _dominating(run: Facts) -> Values | str | None:
    """Whether one of several summed rewards decides alone."""
    blocks = [block for block in run.weighed if run.reward(block.label, "std").known]
    if len(blocks) < 2 or run.config.scoring.aggregation != "weighted-sum":
        return None if len(run.weighed) < 2 else Values(share=0.0, fine="they are normalized within groups")
    sharded = {b.label: run.reward(b.label, "std").map(lambda v, w=b.weight: abs(w) * v) for b in blocks}  # type: ignore[misc]
    total = Series(run.data.iterations, np.sum([s.values for s in sharded.values()], axis=0))
    if not total.known or not total.late.median:
        return Values(share=0.0, fine="none of them varies")
    share = {label: series.over(total).late for label, series in sharded.items()}
    first = max(blocks, key=lambda block: share[block.label].median).label
    seen = [share[first].said(f"{first} has of the rewards' weighted spread (|weight| * std): median", percent)]
    advice = []
    for block in blocks:
        std = run.reward(block.label, "std").late
        if block.label != first:
            seen.append(std.said(f"std of {block.label} (weight {block.weight:g}): median"))
            if std.median and not _is_constant(run, block):
                equal = rounded(block.weight * sharded[first].late.median / sharded[block.label].late.median, 2)
                place = f"rewards.{run.config.rewards.index(block)}.weight"
                advice.append(f"or weigh it up: {place}: {block.weight:g} -> {equal:g}")
    fine = share[first].brief(f"{first} has of the spread", percent)
    return Values(share=share[first].median, first=first, advice=advice, fine=fine, seen=seen)


def _normalized(run: Facts, _: Values) -> Iterable[Change]:
    yield Change("scoring.aggregation", "weighted-sum", "group-normalized")
    if run.config.advantages.std == "group":
        yield Change("advantages.std", "group", "batch")


DOMINATING = Subject("several rewards", _dominating, "{fine}", (
    Rule(
        "one-reward-dominates", "warning",
        "{first} decides alone; the other rewards hardly count.",
        "In a weighted sum the reward with the largest spread is worth the most, whatever the weights say; normalized "
        "within groups they are worth their weights (GDPO, arXiv 2601.05242).",
        lambda v: v.share > DOMINATES, _normalized, lambda v: v.advice,
    ),
))  # fmt: skip


def _range(run: Facts) -> Values | str | None:
    """Whether the training reward lies at an end of its range."""
    ends, series = run.reward_range, run.series("reward.mean")
    if ends is None:
        return None
    if not series.enough:
        return run.too_few()
    span = f"{figure(ends[0])} to {figure(ends[1])}"
    line = f"{series.late.said('the training reward: median')}, in a range from {span}"
    return Values(end=at_end(run), late=series.late.median, span=span, seen=[line])


RANGE = Subject("range", _range, "reward {late} of {span}", (
    Rule(
        "reward-at-its-top", "note",
        "The training reward has reached the end of its range.",
        "What scores as high as can be has no better to prefer: the run is done, or the reward too easy.",
        lambda v: v.end > 0, advice=("stop here, or go on with harder prompts.train",),
    ),
    Rule(
        "reward-at-its-bottom", "warning",
        "The training reward lies at the bottom of its range.",
        "Where nearly everything fails alike, groups have no preference.",
        lambda v: v.end < 0,
        advice=("easier prompts, a larger rollout.group_size, or a reward with steps in between",),
    ),
))  # fmt: skip


def _waiting(run: Facts) -> Values | str:
    """Whether iterations wait for scores."""
    seconds = run.timing("wait_for_scores")
    share = seconds.over(run.timing())
    if not share.known:
        return "no timings are logged"
    spent: dict[str, float] = {}
    for record in run.data.timings.values():
        for label, one in (record.get("rewards") or {}).items():
            spent[label] = spent.get(label, 0.0) + float(one)
    slowest = max(spent, key=lambda label: spent[label], default=None)
    seen = [share.late.said("waiting for scores, of an iteration's time: median", percent)]
    if slowest:
        seen.append(f"the slowest reward is {slowest} (timings.jsonl)")
    return Values(late=share.late.median, seconds=seconds.late.median, slowest=slowest, seen=seen)


def _more_scorers(run: Facts, v: Values) -> Iterable[Change]:
    block = next((b for b in run.config.rewards if b.label == v.slowest), run.config.rewards[0])
    key = f"rewards.{run.config.rewards.index(block)}"
    if block.worker is not None:
        yield Change(f"{key}.worker.count", block.worker.count, min(MOST, 2 * block.worker.count))
    elif block.service is not None:
        most = min(MOST, 2 * block.service.concurrency)
        yield Change(f"{key}.service.concurrency", block.service.concurrency, most)
    else:
        yield Change(f"{key}.worker", None, {"count": 2})


WAITING = Subject("time", _waiting, "waiting for scores: {late:%}", (
    Rule(
        "waiting-for-scores", "note",
        "Much of the time goes into waiting for scores.",
        "Scoring runs beside the rollout; what it takes longer is waited for.",
        lambda v: v.late > LONG and v.seconds >= A_SECOND, _more_scorers,
        ("or a smaller rollout.micro_batch, so that scoring begins earlier",),
    ),
))  # fmt: skip
