"""Slow convergence: a stochastic sampler, small groups, groups without a preference, a reward that does not rise."""

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
"""The paper's deterministic sampler, which comes with the engine."""
SMALL_GROUP = 8
"""G below this is small: the published runs use 24 (the paper) and 16 (the released configuration)."""
TINY_GROUP = 4
"""G below this hardly ranks the samples: with G = 2 every advantage is +1 or -1."""
USUAL_GROUP = 16
"""G of the released configuration."""
ABOUT = 1.25
"""Growth of the samples per iteration up to which their number counts as about the same."""
MANY_EQUAL = 0.5
"""Fraction of groups without a preference above which most rollouts are wasted."""
NEARLY_ALL_EQUAL = 0.8
"""Fraction of groups without a preference above which training makes almost no progress."""
END = 0.02
"""Distance from an end of the reward's range, as a fraction of the range, that counts as being at the end."""
SOLVED = 0.75
"""Fraction of the reward's range above which equal rewards mean solved prompts; below 1 - SOLVED, prompts too hard."""
MANY_ZERO = 0.5
"""Fraction of scored samples with weight 0 that is reported."""
PART = 0.1
"""Fraction of the planned iterations within which the reward must have begun to rise."""
PAUSE = 80
"""Iterations from which the second half alone shows that the reward has leveled off. With 25, the quickstart's reward,
which still rises, cannot be distinguished from a flat one."""


def at_end(run: Facts, share: float = END) -> int:
    """Return 1 if the late training reward is at the upper end of its range, -1 at the lower end, else 0."""
    place = _place(run)
    if place is None:
        return 0
    return 1 if place >= 1 - share else -1 if place <= share else 0


def wanted(run: Facts) -> int:
    """Return after how many iterations the reward must have risen. Long runs get more time: they learn slowly."""
    return max(MIN_TREND, math.ceil(PART * run.config.run.iterations))


def stuck(run: Facts) -> bool:
    """Return whether the training reward has not risen after enough iterations, although its range allows it."""
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
    """Whether the rollouts are stochastic although the objective does not need it."""
    name, objective = run.config.rollout.sampler.use, run.config.objective.use
    random, path = run.components.random, run.components.needs_path
    if random is None or path is None:
        return f"{name if random is None else objective} is not installed here"
    slow, kind = stuck(run), "stochastic, as its objective requires" if random else "deterministic"
    line = f"rollout.sampler is {name} (config.yaml), a stochastic sampler; {objective} declares that it needs no path"
    evidence = [line, *([_rise(run)] if slow else [])]
    return Values(
        useless=random and not path, slow=slow, objective=objective, fine=f"{name} is {kind}", evidence=evidence
    )


SAMPLER = Subject("sampler", _sampler, "{fine}", (
    Rule(
        "random-sampler", lambda v: "problem" if v.slow else "warning",
        "The rollouts are stochastic (SDE), which the objective {objective} does not need.",
        "The paper reports cleaner samples with the same number of steps and faster training with ODE rollouts (arXiv "
        "2510.08425). On the miniature there was no measurable difference (docs/experiments/e1.md).",
        lambda v: v.useless,
        lambda run, _: (Change("rollout.sampler", run.config.rollout.sampler.use, ODE),),
    ),
))  # fmt: skip


def _group_size(run: Facts) -> Values:
    """Whether groups are large enough to rank their samples."""
    rollout = run.config.rollout
    size, groups = rollout.group_size, rollout.groups
    slow, equal, fewer = stuck(run), run.series("zero_variance_groups"), _fewer_groups(run)
    evidence = [f"rollout.group_size is {size}, with {groups} groups per iteration (config.yaml)"]
    if size == 2 and run.config.advantages.std == "group":
        evidence.append("with two samples, the advantages are always +1 and -1, however much the rewards differ")
    if equal.known and equal.whole.median:
        evidence.append(equal.whole.evidence(f"groups without a preference, of {groups}: median"))
    after, before = min(groups, fewer) * USUAL_GROUP, run.samples
    same = fewer < groups and after <= ABOUT * before
    cost = (
        f"with {fewer} groups, the number of samples per iteration stays about the same"
        if same
        else f"an iteration then has {after} samples instead of {before} and takes proportionally longer"
    )
    return Values(size=size, slow=slow, cost=cost, evidence=[*evidence, *([_rise(run)] if slow else [])])


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
        "Groups of {size} samples are small.",
        "Advantages are relative to the group, and a larger group estimates their mean and standard deviation better. "
        "The paper uses 24, the released configuration 16 (arXiv 2510.08425). On the miniature, 4 to 24 made no "
        "measurable difference at the same number of samples (docs/experiments/e7.md).",
        lambda v: v.size < SMALL_GROUP, _larger_groups, ("{cost}",),
    ),
))  # fmt: skip


def _equal(run: Facts) -> Values | str:
    """Whether groups have a preference, and why not."""
    share = run.series("zero_variance_groups").map(lambda values: values / run.config.rollout.groups)
    if not share.enough:
        return run.too_few()
    early, late, mean, place = share.early, share.late, run.series("reward.mean"), _place(run)
    evidence = [
        late.evidence("groups whose rewards are all equal: median", percent),
        early.evidence("first third:", percent),
    ]
    if mean.known:
        ends = run.reward_range
        within = "" if ends is None else f", in the range {figure(ends[0])} to {figure(ends[1])}"
        evidence.append(mean.late.evidence("reward: median") + within)
    hard = place is not None and place <= 1 - SOLVED
    return Values(
        late=late.median, everywhere=late.median > NEARLY_ALL_EQUAL, solved=place is not None and place >= SOLVED,
        how="all of their samples fail" if hard else "their rewards are all equal",
        cure="use a reward with intermediate values (the fraction of met requirements instead of yes or no), or easier "
        "prompts"
        if hard
        else "use a reward that distinguishes the samples of a group; dgpo score shows its results and reasons",
        evidence=evidence,
    )  # fmt: skip


EQUAL = Subject("equal rewards", _equal, "groups without a preference: {late:%}", (
    Rule(
        "prompts-solved", lambda v: "warning" if v.everywhere else "note",
        "Most groups are solved: {late:%} of them have the same high reward for every sample.",
        "A group of equal rewards has no preference and gives no gradient. Only harder prompts leave something to "
        "learn.",
        lambda v: v.late > MANY_EQUAL and v.solved,
        advice=("stop here, or use harder prompts in prompts.train or a reward that still distinguishes good samples",),
    ),
    Rule(
        "zero-variance-groups", lambda v: "problem" if v.everywhere else "warning",
        "{late:%} of the groups have no preference: {how}.",
        "A group of equal rewards gives no gradient, so its rollouts are wasted.",
        lambda v: v.late > MANY_EQUAL,
        lambda run, _: (Change("rollout.group_size", (size := run.config.rollout.group_size), 2 * size),),
        ("{cure}",),
    ),
))  # fmt: skip


def _place(run: Facts) -> float | None:
    """Return the position of the late reward in its range, from 0 to 1; None if unknown."""
    series, ends = run.series("reward.mean"), run.reward_range
    if ends is None or not series.enough:
        return None
    return (series.late.median - ends[0]) / (ends[1] - ends[0])


def _zero_weights(run: Facts) -> Values:
    """Whether many samples are scored but then not trained on."""
    done, skipped = run.series("optimized_members"), run.series("skipped_members")
    share = skipped.over(done.map(lambda values: values + skipped.values))
    if not share.known or share.late.median <= MANY_ZERO:
        return Values(many=False, fine="most samples are trained on" if share.known else "")
    equal = run.series("zero_variance_groups")
    if equal.known and equal.late.median / run.config.rollout.groups > MANY_EQUAL:
        return Values(many=False, fine="only in groups without a preference")
    weighting = f"weighting is {run.config.weighting.use} (config.yaml)"
    evidence = [share.late.evidence("samples skipped: median", percent), weighting]
    return Values(many=True, share=share.late.median, evidence=evidence)


ZERO_WEIGHTS = Subject("zero weights", _zero_weights, "{fine}", (
    Rule(
        "members-not-learned-from", "note",
        "{share:%} of the scored samples have weight 0 and are not trained on.",
        "The paper's weighting |A| trains on every sample whose reward differs from its group's mean (arXiv "
        "2510.08425).",
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
        half=f"second half alone: trend z {half.trend():+.1f} ({half.whole.where})",
        run=shell_word(str(run.data.path)), fine="at the upper end of its range" if top else span,
        evidence=[_rise(run)],
    )  # fmt: skip


TREND = Subject("reward trend", _trend, "{fine}", (
    Rule(
        "reward-falling", "problem",
        "The training reward is falling.",
        "Optimizer steps that are too large undo progress, and a policy far from its reference does not recover.",
        lambda v: not v.top and v.z <= -CLEAR, slower,
    ),
    Rule(
        "reward-not-rising", "warning",
        "The training reward does not rise.",
        "The paper reports rewards that rise within the first tens of iterations (arXiv 2510.08425), and so do the "
        "rewards of the miniatures.",
        lambda v: not v.top and v.z < CLEAR, lambda run, _: (higher_rate(run),),
        ("fix the findings above first, then change the learning rate",),
    ),
    Rule(
        "reward-leveled-off", "note",
        "The training reward has leveled off.",
        "The training prompts have nothing left to teach, or the updates are too large to improve further.",
        lambda v: not v.top and v.level,
        advice=("check whether an earlier evaluation was better: dgpo report {run}",), evidence=("{half}",),
    ),
))  # fmt: skip
