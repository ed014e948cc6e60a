"""Reward trouble: scores that are missing, rewards that say nothing, one that drowns the others, and slow ones."""

from __future__ import annotations

import numpy as np

from dgpo_lab.doctoring.convergence import at_end
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding, figure, percent
from dgpo_lab.doctoring.remedies import rounded
from dgpo_lab.doctoring.trends import Series
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["constant", "dominating", "missing", "saturated", "waiting"]

SOME_MISSING = 0.02
"""Share of samples without a score up to which a crash that was retried in vain explains them."""
MANY_MISSING = 0.1
"""Share from which groups are no longer those that were rolled out; the default limit that stops a run is 0.2."""
FEW = 3
"""Iterations in which a reward must have told samples apart once."""
CONSTANT = 1e-9
"""Standard deviation of a reward, in units of its size, that is rounding."""
DOMINATES = 0.9
"""Share of the summed spread that one reward has when the others hardly count."""
WAITING = 0.25
"""Share of an iteration spent waiting for scores that a second worker would save."""
MOST = 64
"""Workers, and requests under way, that a run file may have."""
A_SECOND = 1.0
"""Seconds of waiting in an iteration below which nobody waits."""


def missing(run: Facts) -> Examination:
    """Whether samples go without a score."""
    series = run.series("missing_rewards")
    if not series.known:
        return Examination("missing scores")
    total = int(series.whole.values.sum())
    if not total:
        return Examination("missing scores", fine="every sample was scored")
    share, late = total / (series.known * run.samples), series.late
    seen = [
        f"{total} of {series.known * run.samples} samples have no score, {percent(share)} ({series.whole.where})",
        late.said("of an iteration's lately: median", lambda value: percent(value / run.samples)),
    ]
    for block in run.config.rewards:
        own = run.reward(block.label, "missing")
        if own.known and own.whole.values.sum():
            seen.append(f"{block.label} is missing for {int(own.whole.values.sum())} of them")
    share = max(share, late.median / run.samples)
    limit = run.config.scoring.max_missing
    finding = Finding(
        "scores-missing",
        "problem" if share > MANY_MISSING else "warning" if share > SOME_MISSING else "note",
        f"{percent(total / (series.known * run.samples))} of the samples could not be scored.",
        seen,
        "A sample without a score leaves its group; where scores are missing for a reason (empty, dark, unreadable "
        "media), what remains is a biased choice.",
        (Change("scoring.max_missing", limit, 0.05),) if limit > 0.05 else (),
        ("dgpo score --self-test NAME tells whether the reward works here; the run's messages name the reason",),
    )
    return Examination("missing scores", (finding,))


def constant(run: Facts) -> Examination:
    """Whether every reward that counts tells samples apart."""
    if run.iterations < FEW:
        return Examination("constant rewards", open=run.too_few(FEW))
    silent = [block for block in run.weighed if _is_constant(run, block)]
    if not silent:
        return Examination("constant rewards", fine="every reward tells samples apart")
    findings = []
    for block in silent:
        std, mean = run.reward(block.label, "std"), run.reward(block.label, "mean")
        index = run.config.rewards.index(block)
        alone = len(silent) == len(run.weighed)
        findings.append(
            Finding(
                "reward-constant",
                "problem" if alone else "warning",
                f"{block.label} gives every sample the same value.",
                (std.late.said(f"std of {block.label}: median"), mean.late.said("its mean: median")),
                "Equal rewards make no preference: nothing is learnt from this reward.",
                () if alone else (Change(f"rewards.{index}.weight", block.weight, 0.0),),
                (f"dgpo score --self-test {block.use} tells whether it can tell good from bad, here and now",),
            )
        )
    return Examination("constant rewards", findings)


def _is_constant(run: Facts, block: RewardBlock) -> bool:
    std, mean = run.reward(block.label, "std"), run.reward(block.label, "mean")
    if not std.known:
        return False
    size = max(1e-12, float(np.abs(mean.late.values).max())) if mean.known else 1.0
    return bool(std.late.values.max() <= CONSTANT * size)


def dominating(run: Facts) -> Examination:
    """Whether one of several summed rewards decides alone."""
    blocks = [block for block in run.weighed if run.reward(block.label, "std").known]
    if len(blocks) < 2 or run.config.scoring.aggregation != "weighted-sum":
        alone = len(run.weighed) < 2
        return Examination("several rewards", fine="" if alone else "they are normalised within groups")
    spread = {b.label: run.reward(b.label, "std").map(lambda v, w=b.weight: abs(w) * v) for b in blocks}  # type: ignore[misc]
    total = Series(run.data.iterations, np.sum([s.values for s in spread.values()], axis=0))
    if not total.known or not total.late.median:
        return Examination("several rewards", fine="none of them varies")
    share = {label: series.over(total).late for label, series in spread.items()}
    first = max(blocks, key=lambda block: share[block.label].median)
    line = share[first.label].said(
        f"{first.label} has of the rewards' weighted spread (|weight| * std): median", percent
    )
    if share[first.label].median <= DOMINATES:
        return Examination(
            "several rewards", fine=share[first.label].brief(f"{first.label} has of the spread", percent)
        )
    others = [block for block in blocks if block is not first]
    seen = [line]
    changes = [
        Change("scoring.aggregation", "weighted-sum", "group-normalised"),
        *([Change("advantages.std", "group", "batch")] if run.config.advantages.std == "group" else []),
    ]
    advice = []
    for block in others:
        std = run.reward(block.label, "std").late
        seen.append(std.said(f"std of {block.label} (weight {block.weight:g}): median"))
        if std.median and not _is_constant(run, block):
            equal = rounded(block.weight * spread[first.label].late.median / spread[block.label].late.median, 2)
            advice.append(
                f"or weigh it up: rewards.{run.config.rewards.index(block)}.weight: {block.weight:g} -> {equal:g}"
            )
    finding = Finding(
        "one-reward-dominates",
        "warning",
        f"{first.label} decides alone; the other rewards hardly count.",
        seen,
        "In a weighted sum the reward with the largest spread is worth the most, whatever the weights say; normalised "
        "within groups they are worth their weights (GDPO, arXiv 2601.05242).",
        changes,
        advice,
    )
    return Examination("several rewards", (finding,))


def saturated(run: Facts) -> Examination:
    """Whether the training reward lies at an end of its range."""
    ends, where = run.reward_range, at_end(run)
    if ends is None:
        return Examination("range")
    if not run.series("reward.mean").enough:
        return Examination("range", open=run.too_few())
    late = run.series("reward.mean").late
    line = f"{late.said('the training reward: median')}, in a range from {figure(ends[0])} to {figure(ends[1])}"
    if not where:
        return Examination("range", fine=f"reward {figure(late.median)} of {figure(ends[0])} to {figure(ends[1])}")
    top = where > 0
    finding = Finding(
        "reward-at-its-top" if top else "reward-at-its-bottom",
        "note" if top else "warning",
        "The training reward has reached the end of its range."
        if top
        else "The training reward lies at the bottom of its range.",
        (line,),
        "What scores as high as can be has no better to prefer: the run is done, or the reward too easy."
        if top
        else "Where nearly everything fails alike, groups have no preference.",
        advice=("stop here, or go on with harder prompts.train",)
        if top
        else ("easier prompts, a larger rollout.group_size, or a reward with steps in between",),
    )
    return Examination("range", (finding,))


def waiting(run: Facts) -> Examination:
    """Whether iterations wait for scores."""
    share = run.timing("wait_for_scores").over(run.timing())
    if not share.known:
        return Examination("time", open="no timings are logged")
    late = share.late
    line = late.said("waiting for scores, of an iteration's time: median", percent)
    if late.median <= WAITING or run.timing("wait_for_scores").late.median < A_SECOND:
        return Examination("time", fine=late.brief("waiting for scores:", percent))
    spent: dict[str, float] = {}
    for record in run.data.timings.values():
        for label, seconds in (record.get("rewards") or {}).items():
            spent[label] = spent.get(label, 0.0) + float(seconds)
    slowest = max(spent, key=lambda label: spent[label], default=None)
    block = next((b for b in run.config.rewards if b.label == slowest), run.config.rewards[0])
    key = f"rewards.{run.config.rewards.index(block)}"
    if block.worker is not None:
        change = Change(f"{key}.worker.count", block.worker.count, min(MOST, 2 * block.worker.count))
    elif block.service is not None:
        most = min(MOST, 2 * block.service.concurrency)
        change = Change(f"{key}.service.concurrency", block.service.concurrency, most)
    else:
        change = Change(f"{key}.worker", None, {"count": 2})
    finding = Finding(
        "waiting-for-scores",
        "note",
        "Much of the time goes into waiting for scores.",
        (line, *([f"the slowest reward is {slowest} (timings.jsonl)"] if slowest else [])),
        "Scoring runs beside the rollout; what it takes longer is waited for.",
        (change,),
        ("or a smaller rollout.micro_batch, so that scoring begins earlier",),
    )
    return Examination("time", (finding,))
