"""Slow convergence: a random sampler, small groups, groups without a preference, a reward that does not rise."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, figure, percent
from dgpo_lab.doctoring.remedies import FEWEST_GROUPS, higher_rate, paper_weighting, slower
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import CLEAR, MIN_TREND
from dgpo_schemas.text import shell_word

__all__ = ["EQUAL", "GROUP_SIZE", "SAMPLER", "TREND", "ZERO_WEIGHTS", "at_end", "stuck", "wanted"]

ODE = "flow-dpmpp"
"""The deterministic sampler of the paper that comes with the engine."""
SMALL_GROUP = 8
"""G below this is small: the published runs have 24 (the paper) and 16 (the released configuration)."""
TINY_GROUP = 4
"""G below this leaves hardly more than a better and a worse half: with G = 2 every advantage is +1 or -1."""
USUAL_GROUP = 16
"""The released configuration's G."""
ABOUT = 1.25
"""Growth of an iteration's samples up to which they are about as many."""
MANY_EQUAL = 0.5
"""Share of groups without a preference from which most of the rollouts are for nothing."""
NEARLY_ALL_EQUAL = 0.8
"""Share from which a run stands still."""
END = 0.02
"""Share of a reward's range from its end that counts as being there."""
SOLVED = 0.75
"""Share of a reward's range above which equal rewards mean solved prompts; below 1 - SOLVED, prompts too hard."""
MANY_ZERO = 0.5
"""Share of scored members with weight 0 that is worth a line."""
PART = 0.1
"""Share of the planned iterations within which a reward must have begun to rise."""
PAUSE = 80
"""Iterations from which the second half alone is long enough to tell that the reward has leveled off: with 25 the
quickstart's, which still rises, cannot be told from a flat one."""


def at_end(run: Facts, share: float = END) -> int:
    """1 if the late training reward lies at the upper end of its range, -1 at the lower, else (or unknown) 0."""
    place = _place(run)
    if place is None:
        return 0
    return 1 if place >= 1 - share else -1 if place <= share else 0


def wanted(run: Facts) -> int:
    """Iterations from which the reward must have risen. Long runs are planned long because they learn slowly."""
    return max(MIN_TREND, math.ceil(PART * run.config.run.iterations))


def stuck(run: Facts) -> bool:
    """Whether the training reward has not risen in iterations enough to see it, and had room to."""
    series = run.series("reward.mean")
    return series.known >= wanted(run) and series.trend() < CLEAR and at_end(run) < 1


def _rise(run: Facts) -> str:
    series = run.series("reward.mean")
    early, late = series.early, series.late
    return (
        f"the training reward's median went from {figure(early.median)} to {figure(late.median)} (metrics.jsonl, "
        f"iterations {early.begin}-{early.end} and {late.begin}-{late.end}); trend z {series.trend():+.1f}"
    )


def _sampler(run: Facts) -> Values | str:
    """Whether the rollouts are random for an objective that has no use for it."""
    name, objective = run.config.rollout.sampler.use, run.config.objective.use
    random, path = run.components.random, run.components.needs_path
    if random is None or path is None:
        return f"{name if random is None else objective} is not installed here"
    slow, kind = stuck(run), "random, as its objective needs it" if random else "deterministic"
    line = f"rollout.sampler is {name} (config.yaml), random, and {objective} needs no path (as its plugin declares)"
    seen = [line, *([_rise(run)] if slow else [])]
    return Values(useless=random and not path, slow=slow, objective=objective, fine=f"{name} is {kind}", seen=seen)


SAMPLER = Subject("sampler", _sampler, "{fine}", (
    Rule(
        "random-sampler", lambda v: "problem" if v.slow else "warning",
        "The rollouts are random (SDE), which objective {objective} has no use for.",
        "The paper reports cleaner samples in as many steps and faster training with ODE rollouts (arXiv 2510.08425); "
        "on the miniature the two could not be told apart (docs/experiments/e1.md).",
        lambda v: v.useless,
        lambda run, _: (Change("rollout.sampler", run.config.rollout.sampler.use, ODE),),
    ),
))  # fmt: skip


def _group_size(run: Facts) -> Values:
    """Whether a group is large enough to tell better from worse."""
    rollout = run.config.rollout
    size, groups = rollout.group_size, rollout.groups
    slow, equal, fewer = stuck(run), run.series("zero_variance_groups"), _fewer_groups(run)
    seen = [f"rollout.group_size is {size}, with {groups} groups an iteration (config.yaml)"]
    if size == 2 and run.config.advantages.std == "group":
        seen.append("of two members one has advantage +1 and one -1, however much their rewards differ")
    if equal.known and equal.whole.median:
        seen.append(equal.whole.said(f"groups of {groups} without a preference: median"))
    after, before = min(groups, fewer) * USUAL_GROUP, run.samples
    same = fewer < groups and after <= ABOUT * before
    cost = (
        f"with {fewer} groups the samples of an iteration stay about as many"
        if same
        else f"an iteration then has {after} samples instead of {before}, and takes as much longer"
    )
    return Values(size=size, slow=slow, cost=cost, seen=[*seen, *([_rise(run)] if slow else [])])


def _fewer_groups(run: Facts) -> int:
    updates = run.config.optimizer.updates
    return max(-(-FEWEST_GROUPS // updates) * updates, run.samples // USUAL_GROUP // updates * updates)


def _larger_groups(run: Facts, _: Values) -> Iterable[Change]:
    rollout, fewer = run.config.rollout, _fewer_groups(run)
    yield Change("rollout.group_size", rollout.group_size, USUAL_GROUP)
    if fewer < rollout.groups:
        yield Change("rollout.groups", rollout.groups, fewer)


GROUP_SIZE = Subject("group size", _group_size, "G = {size}", (
    Rule(
        "group-size-small", lambda v: "problem" if v.slow or v.size < TINY_GROUP else "warning",
        "Groups of {size} tell little about what is better.",
        "Advantages are relative to the group, and a larger one knows its mean and its spread better: the paper takes "
        "24, the released configuration 16 (arXiv 2510.08425); on the miniature 4 to 24, at equal samples, could not "
        "be told apart (docs/experiments/e7.md).",
        lambda v: v.size < SMALL_GROUP, _larger_groups, ("{cost}",),
    ),
))  # fmt: skip


def _equal(run: Facts) -> Values | str:
    """Whether groups have a preference, and if not, why."""
    share = run.series("zero_variance_groups").map(lambda values: values / run.config.rollout.groups)
    if not share.enough:
        return run.too_few()
    early, late, mean, place = share.early, share.late, run.series("reward.mean"), _place(run)
    seen = [late.said("groups whose rewards are all equal: median", percent), early.said("at first", percent)]
    if mean.known:
        ends = run.reward_range
        within = "" if ends is None else f", in a range from {figure(ends[0])} to {figure(ends[1])}"
        seen.append(mean.late.said("the reward's median:") + within)
    hard = place is not None and place <= 1 - SOLVED
    return Values(
        late=late.median, everywhere=late.median > NEARLY_ALL_EQUAL, solved=place is not None and place >= SOLVED,
        how="all their members fail alike" if hard else "their rewards are all equal",
        cure="a reward with steps in between (a share of the demands instead of yes or no), or easier prompts"
        if hard
        else "a reward that tells the members of a group apart: dgpo score shows what it sees",
        seen=seen,
    )  # fmt: skip


EQUAL = Subject("equal rewards", _equal, "groups without a preference: {late:%}", (
    Rule(
        "prompts-solved", lambda v: "warning" if v.everywhere else "note",
        "Most groups are solved: all their members have the same, high reward.",
        "A group of equal rewards has no preference and gives no gradient: what is left to learn lies in harder "
        "prompts.",
        lambda v: v.late > MANY_EQUAL and v.solved,
        advice=("the run may be done; else harder prompts.train, or a reward that still tells good from better",),
    ),
    Rule(
        "zero-variance-groups", lambda v: "problem" if v.everywhere else "warning",
        "Most groups have no preference: {how}.",
        "A group of equal rewards gives no gradient, and its rollouts are for nothing.",
        lambda v: v.late > MANY_EQUAL,
        lambda run, _: (Change("rollout.group_size", (size := run.config.rollout.group_size), 2 * size),),
        ("{cure}",),
    ),
))  # fmt: skip


def _place(run: Facts) -> float | None:
    """Of the late reward in its range, 0 to 1."""
    series, ends = run.series("reward.mean"), run.reward_range
    if ends is None or not series.enough:
        return None
    return (series.late.median - ends[0]) / (ends[1] - ends[0])


def _zero_weights(run: Facts) -> Values:
    """Whether many members are rolled out and scored, and then not learned from."""
    done, skipped = run.series("optimized_members"), run.series("skipped_members")
    share = skipped.over(done.map(lambda values: values + skipped.values))
    if not share.known or share.late.median <= MANY_ZERO:
        return Values(many=False, fine="most members are learned from" if share.known else "")
    equal = run.series("zero_variance_groups")
    if equal.known and equal.late.median / run.config.rollout.groups > MANY_EQUAL:
        return Values(many=False, fine="they are those of groups without a preference")
    weighting = f"weighting is {run.config.weighting.use} (config.yaml)"
    seen = [share.late.said("members skipped: median", percent), weighting]
    return Values(many=True, share=share.late.median, seen=seen)


ZERO_WEIGHTS = Subject("zero weights", _zero_weights, "{fine}", (
    Rule(
        "members-not-learned-from", "note",
        "{share:%} of the scored members have weight 0 and are not learned from.",
        "The paper's weighting, |A|, learns from every member that differs from its group's mean (arXiv 2510.08425).",
        lambda v: v.many, lambda run, _: paper_weighting(run),
    ),
))  # fmt: skip


def _trend(run: Facts) -> Values | str:
    """Whether the training reward rises."""
    series = run.series("reward.mean")
    if series.known < wanted(run):
        return run.too_few(wanted(run))
    half, top = series.half(), at_end(run) == 1
    span = f"{figure(series.early.median)} to {figure(series.late.median)}"
    return Values(
        top=top, z=series.trend(), level=series.known >= PAUSE and half.trend() < CLEAR,
        half=f"trend z of the second half alone {half.trend():+.1f} ({half.whole.where})",
        run=shell_word(str(run.data.path)), fine="at the upper end of its range" if top else span,
        seen=[_rise(run)],
    )  # fmt: skip


TREND = Subject("reward trend", _trend, "{fine}", (
    Rule(
        "reward-falling", "problem",
        "The training reward falls.",
        "Steps that are too large undo what was learned, and a policy far from its reference has no way back.",
        lambda v: not v.top and v.z <= -CLEAR, slower,
    ),
    Rule(
        "reward-not-rising", "warning",
        "The training reward does not rise.",
        "The paper reports rewards that rise from the first tens of iterations on (arXiv 2510.08425), and so do the "
        "miniatures'.",
        lambda v: not v.top and v.z < CLEAR, lambda run, _: (higher_rate(run),),
        ("first mend what stands above; then the learning rate",),
    ),
    Rule(
        "reward-leveled-off", "note",
        "The training reward has leveled off.",
        "What is trained on teaches no more, or updates of this size find no better.",
        lambda v: not v.top and v.level,
        advice=("the best evaluation may be behind: dgpo report {run} shows the curve",), seen=("{half}",),
    ),
))  # fmt: skip
