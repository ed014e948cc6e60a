"""Traces compared: censoring, pairing, intervals and tests, on cells whose numbers are known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dgpo_kit.toy import run_data
from dgpo_lab.ablation import figures, tables, words
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import Plan, Variant
from dgpo_lab.ablation.results import Reached, Results, compare
from dgpo_lab.ablation.traces import MonitorValues, Trace
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.metrics import PromptScores, RewardScores
from dgpo_schemas.run import RunConfig

NAMES = {"base": {"w": "base"}, "new": {"w": "new"}, "odd": {"w": "odd"}}


def trace(variant: str, seed: int, scores: Sequence[float], **changes: Any) -> Trace:
    """An evaluation every 2 iterations of 5 seconds and 16 samples."""
    iterations = [2 * i for i in range(len(scores))]
    facts: dict[str, Any] = {
        "state": State("finished"), "ended_by": "iterations", "iterations": iterations, "scores": scores,
        "seconds": [5.0 * i for i in iterations], "samples": [16 * i for i in iterations],
    } | changes  # fmt: skip
    return Trace(variant=variant, seed=seed, **facts)


def results(traces: Sequence[Trace], target: float | None = None) -> Results:
    return compare(NAMES, traces, reward="score", baseline="base", target=target)


def plan(**changes: Any) -> Plan:
    """The plan of those traces."""
    data = {"name": "trial", "base": "run.yaml", "seeds": 3, "axes": [{"key": "weighting", "values": [1]}]} | changes
    config = RunConfig.model_validate(run_data("runs"))
    variants = [Variant(name, axes, config) for name, axes in NAMES.items()]
    return Plan(AblationConfig.model_validate(data), variants, "score", "base")


def three() -> list[Trace]:
    """Three seeds each: `new` is better by 0.1, 0.2 and 0.3, `odd` by 0.1, -0.1 and 0."""
    last = {"base": (0.4, 0.5, 0.45), "new": (0.5, 0.7, 0.75), "odd": (0.5, 0.4, 0.45)}
    return [trace(v, s, [0.3, 0.35, score]) for v, scores in last.items() for s, score in enumerate(scores)]


def test_differences_are_taken_seed_by_seed() -> None:
    found = results(three())
    base, new, odd = found.variants
    assert base.difference is None
    assert new.difference is not None
    assert odd.difference is not None
    assert new.difference.values == pytest.approx([0.1, 0.2, 0.3])
    low, high = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem([0.1, 0.2, 0.3]))
    assert (new.difference.over_seeds.low, new.difference.over_seeds.high) == pytest.approx((low, high))
    assert (new.difference.test.p, new.difference.corrected) == (0.25, 0.5)
    assert (odd.difference.test.p, odd.difference.corrected) == (1.0, 1.0)
    assert base.score is not None
    assert base.score.value == pytest.approx(0.45)
    assert base.score.over == "seeds"
    assert found.paired is True
    assert found.base_model is not None
    assert found.base_model.value == pytest.approx(0.3)


def test_only_seeds_that_both_have_finished_are_paired() -> None:
    traces = [t for t in three() if (t.variant, t.seed) not in {("base", 0), ("new", 2)}]
    traces += [trace("base", 0, [0.3, 0.9], state=State("unfinished")), trace("new", 2, [], state=State("failed", "x"))]
    found = results(traces)
    new = found.variants[1]
    assert new.difference is not None
    assert (new.difference.seeds, new.difference.values) == ([1], pytest.approx([0.2]))
    assert new.difference.over_seeds.low is None
    assert new.difference.test.p == 1.0
    assert words.seeds_of(new) == "2 of 3"
    assert "from one seed, which tells no chance" in words.headline(found)
    nothing = results([t for t in three() if t.variant == "new"])
    assert nothing.variants[1].difference is None
    assert words.headline(nothing).endswith("; no other variant has a finished cell yet.")
    unpaired = [t for t in three() if t.variant != "base"]
    assert words.headline(results(unpaired)).endswith("; the baseline base has no finished cell yet.")
    assert words.headline(results([])) == "No cell has finished yet: there is nothing to compare."


def test_the_lead_is_that_of_paired_seeds() -> None:
    """`new` has only the seed at which everything scores high: it is behind there, whatever its mean says."""
    traces = [trace("base", s, [0.3, score]) for s, score in enumerate((0.2, 0.3, 0.9))]
    found = results([*traces, trace("new", 2, [0.3, 0.8])])
    assert words.headline(found).startswith("base has the highest score, 0.467 [")
    assert "excludes 0 for 0 of 1 others" in words.headline(found)


def test_prompts_count_where_they_were_kept() -> None:
    def scored(variant: str, seed: int, values: Sequence[float | None], prompts: Sequence[str] = "abcd") -> Trace:
        kept = PromptScores(
            iteration=2, model="ema", prompts=list(prompts),
            rewards={"score": RewardScores(tasks=["x", "x", "y", "y"], values=list(values))},
        )  # fmt: skip
        by_task = [np.mean([v for v in values[i : i + 2] if v is not None]) for i in (0, 2)]
        return trace(variant, seed, [0.3, float(np.mean(by_task))], prompts=kept)

    traces = [
        scored("base", 0, [0.0, 0.2, 0.4, None]), scored("base", 1, [0.1, 0.3, 0.5, 0.1]),
        scored("new", 0, [0.2, 0.4, 0.6, 0.4]), scored("new", 1, [0.3, 0.5, 0.7, 0.3]),
        scored("odd", 0, [0.2, 0.4, 0.6, 0.4], "abce"), scored("odd", 1, [0.3, 0.5, 0.7, 0.3], "abcd"),
    ]  # fmt: skip
    base, new, odd = results(traces).variants
    assert base.score is not None
    assert (base.score.over, base.score.value) == ("seeds and prompts", pytest.approx((0.25 + 0.25) / 2))
    assert new.difference is not None
    assert new.difference.over_both is not None
    assert new.difference.over_both.value == pytest.approx(0.2)
    assert odd.score is not None
    assert odd.score.over == "seeds"
    assert odd.difference is not None
    assert odd.difference.over_both is None


# -- time to target -------------------------------------------------------------------------------------------------


def test_a_target_that_every_seed_reached() -> None:
    """At iterations 4, 2 and 4: 20, 10 and 20 seconds, 64, 32 and 64 samples."""
    traces = [trace("base", s, scores) for s, scores in enumerate([[0.1, 0.2, 0.6], [0.1, 0.5, 0.4], [0.1, 0.2, 0.5]])]
    found = results(traces, target=0.5).variants[0].reached
    assert found is not None
    assert (found.seconds, found.samples, found.complete) == ([20.0, 10.0, 20.0], [64, 32, 64], True)
    assert found.text("seconds") == "median 20.0s (10.0s to 20.0s)"
    assert found.text("samples") == "median 64 (32 to 64)"


def test_a_target_that_was_not_reached_is_never_a_number() -> None:
    traces = [trace("base", s, [0.1, 0.2, 0.6 if s == 0 else 0.3]) for s in range(5)]
    traces += [trace("new", s, [0.1, 0.2, 0.3]) for s in range(4)]
    traces += [trace("new", 4, [0.1, 0.2])]
    found = results(traces, target=0.5)
    base, new, odd = (variant.reached for variant in found.variants)
    assert base is not None
    assert base.text("seconds") == "not reached in 4 of 5 (within 20.0s)"
    assert new is not None
    assert new.text("seconds") == "not reached in 5 of 5 (within 10.0s to 20.0s)"
    assert new.text("samples") == "not reached in 5 of 5 (within 32 to 64)"
    assert odd is not None
    assert odd.text("seconds") == "–"
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(found))))
    assert [line["reached"] for line in lines] == ["1", "0", "0"]
    assert {line["median_seconds_to_target"] for line in lines} == {""}
    assert {line["median_samples_to_target"] for line in lines} == {""}
    cells = list(csv.DictReader(io.StringIO(tables.cells_csv(found))))
    assert [c["seconds_to_target"] for c in cells if c["variant"] == "base"] == ["20.0", "", "", "", ""]
    data = json.loads(tables.as_json(plan(seeds=5), found))
    assert data["variants"][1]["reached"] == {
        "seconds": [], "samples": [], "censored_seconds": [20.0] * 4 + [10.0],
        "censored_samples": [64] * 4 + [32], "of": 5, "complete": False,
    }  # fmt: skip


def test_a_single_seed_has_no_median() -> None:
    assert Reached([3.0], [48], [], []).text("seconds") == "3.0s"


# -- words and tables -----------------------------------------------------------------------------------------------


def test_the_page_says_what_few_seeds_can_report() -> None:
    found = results(three())
    text = tables.as_markdown(plan(), found)
    assert text.startswith("# trial\n\nnew has the highest score, 0.650 [0.")
    assert "+0.200 [−0.048, +0.448] against base over 3 paired seeds; the interval contains 0" in text
    assert "p = 0.250 (0.500 after Holm's correction)" in text
    assert "with 3 seeds it cannot be below 0.25, nor below 0.5 after Holm's correction over 2." in text
    assert "over training seeds (Student's t): another seed, the same prompts" in text
    header, *rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert header == "| variant | seeds | score | difference to base | p | p (Holm) |"
    assert rows[1].endswith("| +0.200 [−0.048, +0.448] | 0.250 | 0.500 |")


def apart(n: int, by: float = 0.2, other: float = 0.0) -> Results:
    """Two or three variants whose paired differences hardly vary, so that t intervals exclude 0."""
    traces = [trace("base", s, [0.3, 0.4 + 0.01 * s]) for s in range(n)]
    traces += [trace("new", s, [0.3, 0.4 + 0.01 * s + by + 0.001 * (s % 2)]) for s in range(n)]
    return results(traces)


@pytest.mark.parametrize(("n", "p", "more"), [(2, "0.500", 4), (3, "0.250", 3), (4, "0.125", 2)])
def test_few_pairs_are_no_headline(n: int, p: str, more: str) -> None:
    """The t interval of two differences close to each other excludes 0, beside a p of 0.5."""
    for by in (0.2, -0.2):
        found = apart(n, by)
        difference = found.variants[1].difference
        assert difference is not None
        assert difference.over_seeds.low is not None
        assert difference.over_seeds.high is not None
        assert difference.over_seeds.low * difference.over_seeds.high > 0
        said = words.headline(found)
        assert ("excludes 0 for 0 of 1 others; 1 has too few" if by < 0 else f"over {n} paired seeds, too few") in said
        assert "excludes" not in said.replace("excludes 0 for 0", "")
        assert f"any p below 0.05 takes at least {more} pairs more." in said
        assert (f"p = {p}" in said) is (by > 0)


@pytest.mark.parametrize("n", [5, 6, 8])
def test_enough_pairs_are_one(n: int) -> None:
    assert f"over {n} paired seeds; the interval excludes 0, and the" in words.headline(apart(n))
    assert words.headline(apart(n, -0.2)).endswith(
        "it is the baseline. The interval of the difference to it excludes 0 for 1 of 1 others."
    )


def test_variants_with_few_pairs_are_counted_apart() -> None:
    full = apart(6, -0.2)
    traces = [*full.traces, *(trace("odd", s, [0.3, 0.1 + 0.01 * s]) for s in range(2))]
    assert words.headline(results(traces)).endswith(
        "excludes 0 for 1 of 2 others; 1 has too few paired seeds to tell from chance: any p below 0.05 takes at least "
        "4 pairs more."
    )


@pytest.mark.parametrize(
    ("n", "reported"),
    [(3, "A p below 0.05 takes at least 3 more."), (5, "A p below 0.05 takes at least 1 more."), (6, None)],
)
def test_the_missing_seeds_are_reported(n: int, reported: str | None) -> None:
    said = words.how_to_read(plan(), apart(n))[1]
    assert said.endswith(reported) if reported else "below 0.05" not in said


def test_the_correction_takes_more_seeds() -> None:
    assert words.how_to_read(plan(), results(three()))[1].endswith(
        "A p below 0.05 takes at least 3 more, and 4 more after the correction."
    )


def test_monitors_stand_beside_the_score() -> None:
    left = {"diversity": MonitorValues(0.4, 0.1, True), "clip": MonitorValues(0.2, 0.3, False)}
    kept = {"diversity": MonitorValues(0.4, 0.5, False), "clip": MonitorValues(0.2, 0.2, False)}
    traces = [trace("base", 0, [0.1, 0.2], monitors=left), trace("base", 1, [0.1, 0.2], monitors=kept)]
    found = results(traces)
    mean = found.variants[0].monitors["diversity"]
    assert (mean.last, mean.change, mean.left, mean.n) == (pytest.approx(0.3), pytest.approx(-0.1), 1, 2)
    assert tables.monitor_row(found.variants[0], ["diversity", "clip"]) == [
        "base", "0.300 (−0.100)", "0.250 (+0.050)", "1 of 2"
    ]  # fmt: skip
    assert "| variant | diversity (change) | clip (change) | out of tolerance |" in tables.as_markdown(plan(), found)


def test_what_weakens_a_comparison_is_said() -> None:
    traces = [
        *three()[:-2],
        trace("odd", 1, [], state=State("failed", "the lamp is broken (exit code 1)")),
        trace("odd", 2, [0.9, 0.1], state=State("unfinished")),
    ]
    traces[0] = trace("base", 0, [0.29, 0.6], ended_by="target")
    assert words.warnings(plan(), results(traces, target=0.3))[3] == (
        "The base model is at the target before training in 6 cells: a higher one tells more."
    )
    shared = "Up to 4 cells shared a device: their seconds are longer than those of a cell alone."
    for devices, reported in ((None, True), ([0, 1], True), ([0, 1, 2, 3], False)):
        assert (shared in words.warnings(plan(parallel=4, devices=devices), results(three(), target=0.5))) is reported
    said = words.warnings(plan(), results(traces))
    assert said == [
        "odd, seed 1 failed: the lamp is broken (exit code 1). Its log is "
        "runs/trial/cells/odd/seed-1/train.log.",
        "1 of 9 cells is not finished and does not count.",
        "Some cells ended because they reached stop.target: their last scores say little, compare times instead.",
        "The base model does not score the same in every variant: evaluations are not paired.",
    ]  # fmt: skip


# -- curves ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_over_seeds_and_ends_with_the_first() -> None:
    traces = [trace("base", 0, [0.0, 0.2, 0.4]), trace("base", 1, [0.2, 0.4])]
    found = figures.seed_range(traces, "samples")
    assert found is not None
    assert (found.x.tolist(), found.mean.tolist()) == ([0.0, 32.0], pytest.approx([0.1, 0.3]))
    assert (found.low.tolist(), found.high.tolist()) == ([0.0, 0.2], [0.2, 0.4])
    slower = [traces[0], trace("base", 1, [0.2, 0.4], seconds=[0.0, 40.0])]
    timed = figures.seed_range(slower, "time")
    assert timed is not None
    assert (timed.x[0], timed.x[-1]) == (0.0, 20.0)
    assert timed.mean[-1] == pytest.approx((0.4 + 0.3) / 2)
    assert figures.seed_range([trace("base", 0, [0.1])], "iterations") is None


def test_a_single_variant_is_held_beside_the_base_model() -> None:
    traces = [trace("base", seed, [0.3, 0.5 + 0.1 * seed]) for seed in range(3)]
    found = compare({"base": {"w": "base"}}, traces, reward="score", baseline="base", target=None)
    assert words.headline(found) == (
        "base reaches score 0.600 [0.352, 0.848]; the base model scores 0.300 [0.300, 0.300]."
    )
