"""Reward problems: missing scores, constant rewards, one reward that dominates the others, slow scoring."""

from __future__ import annotations

import math
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
"""Fraction of samples without a score that an occasional crash, retried without success, explains."""
MANY_MISSING = 0.1
"""Fraction from which the groups are biased; the default limit that stops a run is 0.2."""
FEW = 3
"""Minimum iterations to report that a reward is constant."""
ROUNDING = 1e-9
"""Standard deviation of a reward, relative to its size, that is a rounding error."""
DOMINATES = 0.9
"""Fraction of the summed weighted standard deviations above which one reward dominates the others."""
LONG = 0.25
"""Fraction of an iteration spent waiting for scores that is reported; a second worker would reduce it."""
MOST = 64
"""Maximum number of workers, and of concurrent requests, in a run file."""
A_SECOND = 1.0
"""Seconds of waiting per iteration below which the wait does not matter."""


def _missing(run: Facts) -> Values | None:
    """Whether samples have no score."""
    series = run.series("missing_rewards")
    if not series.known:
        return None
    total, of, late = int(series.whole.values.sum()), series.known * run.samples, series.late
    evidence = [
        f"{total} of {of} samples have no score, {percent(total / of)} ({series.whole.where})",
        late.evidence("per iteration, last third: median", lambda value: percent(value / run.samples)),
    ]
    for block in run.config.rewards:
        missing = run.reward(block.label, "missing")
        if missing.known and missing.whole.values.sum():
            evidence.append(f"{block.label} is missing for {int(missing.whole.values.sum())} of them")
    return Values(total=total, share=total / of, most=max(total / of, late.median / run.samples), evidence=evidence)


def _fewer_missing(run: Facts, _: Values) -> Iterable[Change]:
    if (limit := run.config.scoring.max_missing) > 0.05:
        yield Change("scoring.max_missing", limit, 0.05)


MISSING = Subject("missing scores", _missing, "every sample was scored", (
    Rule(
        "scores-missing",
        lambda v: "problem" if v.most > MANY_MISSING else "warning" if v.most > SOME_MISSING else "note",
        "{share:%} of the samples could not be scored.",
        "Samples without a score are removed from their group. If scores fail for certain samples (empty, dark, "
        "unreadable media), the remaining samples are a biased selection.",
        lambda v: v.total > 0, _fewer_missing,
        ("read the run's messages, which state the reason, and test the reward: dgpo score --self-test NAME",),
    ),
))  # fmt: skip


def _constant(run: Facts) -> Values | Sequence[Values] | str:
    """Whether every reward with nonzero weight varies between samples."""
    if run.iterations < FEW:
        return run.too_few(FEW)
    silent = [block for block in run.weighted_rewards if _is_constant(run, block)]
    return [
        Values(
            silent=True, alone=len(silent) == len(run.weighted_rewards), block=block, label=block.label, use=block.use,
            evidence=[
                run.reward(block.label, "std").late.evidence(f"std of {block.label}: median"),
                run.reward(block.label, "mean").late.evidence(f"mean of {block.label}: median"),
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


CONSTANT = Subject("constant rewards", _constant, "every reward varies between samples", (
    Rule(
        "reward-constant", lambda v: "problem" if v.alone else "warning",
        "{label} returns the same value for every sample.",
        "Equal rewards give no preference, so the model learns nothing from this reward.",
        lambda v: v.silent, _without,
        ("test whether the reward separates good from bad samples: dgpo score --self-test {use}",),
    ),
))  # fmt: skip


def _spread(run: Facts, block: RewardBlock) -> Series:
    """Standard deviation of the values that are summed; of ranks, that of a group without ties."""
    std = run.reward(block.label, "std")
    if block.transform is None:
        return std
    ranked = math.sqrt((1 - run.config.rollout.group_size**-2) / 12)
    return std.map(lambda values: np.where(values > 0, ranked, values))


def _dominating(run: Facts) -> Values | str | None:
    """Whether one of several summed rewards dominates."""
    blocks = [block for block in run.weighted_rewards if run.reward(block.label, "std").known]
    if len(blocks) < 2 or run.config.scoring.aggregation != "weighted-sum":
        return None if len(run.weighted_rewards) < 2 else Values(share=0.0, fine="normalized within groups")
    spread = {b.label: _spread(run, b).map(lambda v, w=b.weight: abs(w) * v) for b in blocks}  # type: ignore[misc]
    total = Series(run.data.iterations, np.sum([s.values for s in spread.values()], axis=0))
    if not total.known or not total.late.median:
        return Values(share=0.0, fine="none of them varies")
    share = {label: series.over(total).late for label, series in spread.items()}
    first = max(blocks, key=lambda block: share[block.label].median).label
    evidence = [share[first].evidence(f"share of {first} in the summed |weight| * std of the rewards: median", percent)]
    advice = []
    for block in blocks:
        std = _spread(run, block).late
        if block.label != first:
            evidence.append(std.evidence(f"std of {block.label} (weight {block.weight:g}): median"))
            if std.median and not _is_constant(run, block):
                equal = rounded(block.weight * spread[first].late.median / spread[block.label].late.median, 2)
                key = f"rewards.{run.config.rewards.index(block)}.weight"
                advice.append(f"or increase the weight of {block.label}: {key}: {block.weight:g} -> {equal:g}")
    fine = share[first].brief(f"{first} has the largest share of the weighted std,", percent)
    return Values(share=share[first].median, first=first, advice=advice, fine=fine, evidence=evidence)


def _normalized(run: Facts, _: Values) -> Iterable[Change]:
    yield Change("scoring.aggregation", "weighted-sum", "group-normalized")
    if run.config.advantages.std == "group":
        yield Change("advantages.std", "group", "batch")


DOMINATING = Subject("several rewards", _dominating, "{fine}", (
    Rule(
        "one-reward-dominates", "warning",
        "{first} dominates the sum of the rewards; the others have almost no effect.",
        "In a weighted sum, the reward with the largest standard deviation has the largest effect, whatever the "
        "weights are. Rewards that are normalized within groups count by their weights (GDPO, arXiv 2601.05242).",
        lambda v: v.share > DOMINATES, _normalized, lambda v: v.advice,
    ),
))  # fmt: skip


def _range(run: Facts) -> Values | str | None:
    """Whether the training reward is at an end of its range."""
    ends, series = run.reward_range, run.series("reward.mean")
    if ends is None:
        return None
    if not series.enough:
        return run.too_few()
    span = f"{figure(ends[0])} to {figure(ends[1])}"
    line = f"{series.late.evidence('training reward: median')}, in the range {span}"
    return Values(end=at_end(run), late=series.late.median, span=span, evidence=[line])


RANGE = Subject("range", _range, "reward {late} (limits: {span})", (
    Rule(
        "reward-at-its-top", "note",
        "The training reward has reached the upper end of its range, {span}.",
        "Samples with the maximum score leave nothing to prefer: training is complete, or the reward is too easy.",
        lambda v: v.end > 0, advice=("stop here, or continue with harder prompts in prompts.train",),
    ),
    Rule(
        "reward-at-its-bottom", "warning",
        "The training reward is at the lower end of its range, {span}.",
        "If nearly all samples fail, groups have no preference.",
        lambda v: v.end < 0,
        advice=("use easier prompts, a larger rollout.group_size, or a reward with intermediate values",),
    ),
))  # fmt: skip


def _waiting(run: Facts) -> Values | str:
    """Whether iterations spend much time waiting for scores."""
    seconds = run.timing("wait_for_scores")
    share = seconds.over(run.timing())
    if not share.known:
        return "no timings are logged"
    spent: dict[str, float] = {}
    for record in run.data.timings.values():
        for label, value in (record.get("rewards") or {}).items():
            spent[label] = spent.get(label, 0.0) + float(value)
    slowest = max(spent, key=lambda label: spent[label], default=None)
    evidence = [share.late.evidence("fraction of an iteration spent waiting for scores: median", percent)]
    if slowest:
        evidence.append(f"the slowest reward is {slowest} (timings.jsonl)")
    return Values(late=share.late.median, seconds=seconds.late.median, slowest=slowest, evidence=evidence)


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
        "{late:%} of the time is spent waiting for scores.",
        "Scoring runs in parallel with the rollout. If it takes longer, the iteration waits for it.",
        lambda v: v.late > LONG and v.seconds >= A_SECOND, _more_scorers,
        ("or use a smaller rollout.micro_batch, so that scoring starts earlier",),
    ),
))  # fmt: skip
