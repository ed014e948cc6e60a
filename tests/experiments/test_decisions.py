"""Verdicts on a page are those of its numbers: each budget a family, and the times to the target."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import Results, compare
from dgpo_lab.ablation.traces import Trace
from experiments.decisions import Decisions

SEEDS = 10
NAMES = ("dgpo", "better", "same", "slow")
PRICES = {"dgpo": 2.0, "better": 2.0, "same": 2.0, "slow": 4.0}
"""Seconds of an iteration."""
LAST = {"dgpo": 0.6, "better": 0.68, "same": 0.6, "slow": 0.7}
ITERATIONS = [0, 5, 10, 15, 20]


@pytest.fixture(scope="module")
def results() -> Results:
    """Curves from 0.4 to the last score and some noise, on a line: the slower variant is better at equal samples."""
    generator = np.random.default_rng(0)
    traces = []
    for seed in range(SEEDS):
        shared = generator.normal(0, 0.03)
        for name in NAMES:
            last = LAST[name] + shared + generator.normal(0, 0.004)
            scores = [0.4 + (last - 0.4) * i / 20 for i in ITERATIONS]
            price = PRICES[name] * (3 if seed == 4 else 1)  # this seed's cells shared their core with others
            traces.append(
                Trace(name, seed, State("finished"), iterations=ITERATIONS, scores=scores,
                      seconds=[price * i for i in ITERATIONS], samples=[96 * i for i in ITERATIONS])
            )  # fmt: skip
    named = {name: {"idea": name} for name in NAMES}
    return compare(named, traces, reward="score", baseline="dgpo", target=0.55)


def test_each_budget_has_its_verdicts(results: Results) -> None:
    decided = Decisions(results)
    assert decided.horizon("samples") == "1,920 samples"
    assert decided.horizon("seconds") == "40.0s"
    found = {budget: [one.verdict for one in decided.contrasts(budget, 0.02)] for budget in ("samples", "seconds")}
    assert found == {
        "samples": ["difference", "equivalent", "difference"],
        "seconds": ["difference", "equivalent", "difference"],
    }
    at_seconds = dict(zip(NAMES[1:], decided.sentences("seconds", 0.02), strict=True))
    assert at_seconds["better"].startswith("`better` scores more than `dgpo`: +0.0")
    assert at_seconds["same"].startswith("`same` and `dgpo` are equivalent within ±0.02: ")
    assert at_seconds["slow"].startswith("`slow` scores less than `dgpo`: −0.0"), "half way after the same time"
    wide = [one.verdict for one in decided.contrasts("samples", 0.002)]
    assert wide[1] == "undecided"
    assert decided.sentences("samples", 0.002)[1].startswith("`same` against `dgpo` is undecided: ")


def test_differences_at_equal_seconds_are_those_of_the_lines(results: Results) -> None:
    """The slower variant has done ten of its iterations when the baseline has done twenty."""
    by_cell = {(t.variant, t.seed): t for t in results.traces}
    expected = [by_cell["slow", s].scores[2] - by_cell["dgpo", s].scores[4] for s in range(SEEDS)]
    low, high = stats.t.interval(0.95, SEEDS - 1, loc=np.mean(expected), scale=stats.sem(expected))
    decided = Decisions(results)
    found = decided.contrasts("seconds", 0.02)[2].difference
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(expected), low, high))
    area = decided.area("slow", "samples")
    assert area is not None
    areas = [(by_cell["slow", s].scores[4] - by_cell["dgpo", s].scores[4]) / 2 for s in range(SEEDS)]  # of triangles
    assert area.value == pytest.approx(np.mean(areas))


def test_times_to_the_target() -> None:
    """By hand: the baseline is there after 10 iterations, the slower one after 15, in two of ten seeds not by 20. A
    single evaluation above the target ends no clock."""
    traces = []
    for seed in range(SEEDS):
        curves = {
            "dgpo": [0.4, 0.5, 0.56, 0.54, 0.6] if seed == 5 else [0.4, 0.5, 0.56, 0.57, 0.6],
            "slow": [0.4, 0.56, 0.5, 0.5, 0.5] if seed in (1, 2) else [0.4, 0.4, 0.5, 0.56, 0.6],
        }
        for name, scores in curves.items():
            price = PRICES[name]
            traces.append(
                Trace(name, seed, State("finished"), iterations=ITERATIONS, scores=scores,
                      seconds=[price * i for i in ITERATIONS], samples=[96 * i for i in ITERATIONS])
            )  # fmt: skip
    named = {name: {"idea": name} for name in ("dgpo", "slow")}
    decided = Decisions(compare(named, traces, reward="score", baseline="dgpo", target=0.55))
    assert decided.median_time("dgpo", "samples") == "960"
    assert decided.median_time("slow", "samples") == "1,440"
    assert decided.median_time("slow", "seconds") == "60"
    # Seed 5 of the baseline is at the target once, then below, then once at the end: not before 20 iterations.
    # Ratios: seven of 1.5; two of more than 2; one of less than 0.75. The second smallest bounds the median.
    assert decided.ratio("slow", "samples") == "1.5 times [more than 1.5]"
    assert decided.ratio("slow", "seconds") == "3.0 times [more than 3.0]"


def test_a_variant_without_runs_has_no_numbers(results: Results) -> None:
    traces = [t for t in results.traces if t.variant != "slow"]
    named = {name: {"idea": name} for name in NAMES}
    decided = Decisions(compare(named, traces, reward="score", baseline="dgpo", target=0.55))
    assert [one.name for one in decided.contrasts("samples", 0.02)] == ["better", "same"]
    assert decided.median_time("slow", "samples") == "–"
    assert decided.ratio("slow", "seconds") == "–"
    assert decided.area("slow", "seconds") is None
