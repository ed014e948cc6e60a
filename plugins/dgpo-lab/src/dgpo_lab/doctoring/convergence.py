"""Slow convergence: a random sampler, small groups, groups without a preference, a reward that does not rise."""

from __future__ import annotations

import math

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding, figure, percent
from dgpo_lab.doctoring.remedies import FEWEST_GROUPS, higher_rate, lower_rate, more_kl, paper_weighting
from dgpo_lab.doctoring.trends import CLEAR, MIN_TREND
from dgpo_schemas.text import shell_word

__all__ = [
    "at_end",
    "group_size",
    "reward_trend",
    "sampler",
    "stuck",
    "wanted",
    "zero_variance",
    "zero_weights",
]

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
"""Iterations from which the second half alone is long enough to tell that the reward has levelled off: with 25 the
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


def sampler(run: Facts) -> Examination:
    """Whether the rollouts are random for an objective that has no use for it."""
    name, objective = run.config.rollout.sampler.use, run.config.objective.use
    how = "as its plugin declares" if run.parts.declared else "known by its name: its plugin is not installed here"
    if not run.parts.random or run.parts.needs_path:
        kind = "random, as its objective needs it" if run.parts.random else "deterministic"
        return Examination("sampler", fine=f"{name} is {kind}")
    slow = stuck(run)
    finding = Finding(
        "random-sampler",
        "problem" if slow else "warning",
        f"The rollouts are random (SDE), which objective {objective} has no use for.",
        (
            f"rollout.sampler is {name} (config.yaml), random, and {objective} needs no path ({how})",
            *([_rise(run)] if slow else []),
        ),
        "The paper reports cleaner samples in as many steps and faster training with ODE rollouts (arXiv 2510.08425); "
        "on the miniature the two could not be told apart (docs/experiments/e1.md).",
        (Change("rollout.sampler", name, "flow-dpmpp"),),
    )
    return Examination("sampler", (finding,))


def group_size(run: Facts) -> Examination:
    """Whether a group is large enough to tell better from worse."""
    rollout = run.config.rollout
    size, groups, updates = rollout.group_size, rollout.groups, run.config.optimiser.updates
    if size >= SMALL_GROUP:
        return Examination("group size", fine=f"G = {size}")
    slow = stuck(run)
    fewer = max(-(-FEWEST_GROUPS // updates) * updates, run.samples // USUAL_GROUP // updates * updates)
    after, before = min(groups, fewer) * USUAL_GROUP, run.samples
    seen = [f"rollout.group_size is {size}, with {groups} groups an iteration (config.yaml)"]
    if size == 2 and run.config.advantages.std == "group":
        seen.append("of two members one has advantage +1 and one -1, however much their rewards differ")
    equal = run.series("zero_variance_groups")
    if equal.known and equal.whole.median:
        seen.append(equal.whole.said(f"groups of {groups} without a preference: median"))
    finding = Finding(
        "group-size-small",
        "problem" if slow or size < TINY_GROUP else "warning",
        f"Groups of {size} tell little about what is better.",
        (*seen, *([_rise(run)] if slow else [])),
        "Advantages are relative to the group, and a larger one knows its mean and its spread better: the paper takes "
        "24, the released configuration 16 (arXiv 2510.08425); on the miniature 4 to 24, at equal samples, could not "
        "be told apart (docs/experiments/e7.md).",
        (
            Change("rollout.group_size", size, USUAL_GROUP),
            *([Change("rollout.groups", groups, fewer)] if fewer < groups else []),
        ),
        (f"with {fewer} groups the samples of an iteration stay about as many",)
        if fewer < groups and after <= ABOUT * before
        else (f"an iteration then has {after} samples instead of {before}, and takes as much longer",),
    )
    return Examination("group size", (finding,))


def zero_variance(run: Facts) -> Examination:
    """Whether groups have anything to prefer."""
    groups = run.config.rollout.groups
    share = run.series("zero_variance_groups").map(lambda values: values / groups)
    if not share.enough:
        return Examination("equal rewards", open=run.too_few())
    early, late = share.early, share.late
    if late.median <= MANY_EQUAL:
        return Examination("equal rewards", fine=late.brief("groups without a preference:", percent))
    place = _place(run)
    solved, hard = place is not None and place >= SOLVED, place is not None and place <= 1 - SOLVED
    everywhere = late.median > NEARLY_ALL_EQUAL
    mean = run.series("reward.mean")
    seen = [late.said("groups whose rewards are all equal: median", percent), early.said("at first", percent)]
    if mean.known:
        ends = run.reward_range
        within = "" if ends is None else f", in a range from {figure(ends[0])} to {figure(ends[1])}"
        seen.append(mean.late.said("the reward's median:") + within)
    size = run.config.rollout.group_size
    larger = (Change("rollout.group_size", size, 2 * size),)
    if solved:
        finding = Finding(
            "prompts-solved",
            "warning" if everywhere else "note",
            "Most groups are solved: all their members have the same, high reward.",
            seen,
            "A group of equal rewards has no preference and gives no gradient: what is left to learn lies in harder "
            "prompts.",
            advice=("the run may be done; else harder prompts.train, or a reward that still tells good from better",),
        )
    else:
        finding = Finding(
            "zero-variance-groups",
            "problem" if everywhere else "warning",
            "Most groups have no preference: "
            + ("all their members fail alike." if hard else "their rewards are all equal."),
            seen,
            "A group of equal rewards gives no gradient, and its rollouts are for nothing.",
            larger,
            (
                "a reward with steps in between (a share of the demands instead of yes or no), or easier prompts"
                if hard
                else "a reward that tells the members of a group apart: dgpo score shows what it sees",
            ),
        )
    return Examination("equal rewards", (finding,))


def _place(run: Facts) -> float | None:
    """Of the late reward in its range, 0 to 1."""
    series, ends = run.series("reward.mean"), run.reward_range
    if ends is None or not series.enough:
        return None
    return (series.late.median - ends[0]) / (ends[1] - ends[0])


def zero_weights(run: Facts) -> Examination:
    """Whether many members are rolled out and scored, and then not learnt from."""
    done, skipped = run.series("optimised_members"), run.series("skipped_members")
    total = done.map(lambda values: values + skipped.values)
    share = skipped.over(total)
    if not share.known or share.late.median <= MANY_ZERO:
        return Examination("zero weights", fine="most members are learnt from" if share.known else "")
    groups = run.config.rollout.groups
    equal = run.series("zero_variance_groups")
    if equal.known and equal.late.median / groups > MANY_EQUAL:
        return Examination("zero weights", fine="they are those of groups without a preference")
    weighting = run.config.weighting.use
    finding = Finding(
        "members-not-learnt-from",
        "note",
        f"{percent(share.late.median)} of the scored members have weight 0 and are not learnt from.",
        (share.late.said("members skipped: median", percent), f"weighting is {weighting} (config.yaml)"),
        "The paper's weighting, |A|, learns from every member that differs from its group's mean (arXiv 2510.08425).",
        paper_weighting(run),
    )
    return Examination("zero weights", (finding,))


def reward_trend(run: Facts) -> Examination:
    """Whether the training reward rises."""
    series = run.series("reward.mean")
    if series.known < wanted(run):
        return Examination("reward trend", open=run.too_few(wanted(run)))
    trend, line = series.trend(), _rise(run)
    if at_end(run) == 1:
        return Examination("reward trend", fine="at the upper end of its range")
    if trend <= -CLEAR:
        finding = Finding(
            "reward-falling",
            "problem",
            "The training reward falls.",
            (line,),
            "Steps that are too large undo what was learnt, and a policy far from its reference has no way back.",
            (lower_rate(run), more_kl(run)),
        )
    elif trend < CLEAR:
        finding = Finding(
            "reward-not-rising",
            "warning",
            "The training reward does not rise.",
            (line,),
            "The paper reports rewards that rise from the first tens of iterations on (arXiv 2510.08425), and so do "
            "the miniatures'.",
            (higher_rate(run),),
            ("first mend what stands above; then the learning rate",),
        )
    elif series.known >= PAUSE and series.half().trend() < CLEAR:
        finding = Finding(
            "reward-levelled-off",
            "note",
            "The training reward has levelled off.",
            (line, f"trend z of the second half alone {series.half().trend():+.1f} ({series.half().whole.where})"),
            "What is trained on teaches no more, or updates of this size find no better.",
            advice=(
                f"the best evaluation may be behind: dgpo report {shell_word(str(run.data.path))} shows the curve",
            ),
        )
    else:
        return Examination("reward trend", fine=f"{figure(series.early.median)} to {figure(series.late.median)}")
    return Examination("reward trend", (finding,))
