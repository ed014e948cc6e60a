"""Scores at equal seconds: what is switched off, how seconds become iterations, and what the page says of a record."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from dgpo_core.plugins.registry import get_registry
from dgpo_core.training import accumulation
from dgpo_core.training.policy import Policy
from experiments.catalog import HERE
from experiments.page import write_index
from experiments.seconds.costs import Cost, Round, config_of, cost_of
from experiments.seconds.measure import at, iterations_within
from experiments.seconds.page import verdict, write_page
from experiments.seconds.record import load
from experiments.seconds.variants import BASELINE, VARIANTS, Variant, as_before

PAGES = HERE.parent / "docs" / "experiments"
NAMED = {variant.name: variant for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMED)
def test_every_variant_is_a_run_file(variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    config = config_of(variant, str(tmp_path), 3, 5, get_registry())
    assert (config.run.seed, config.run.iterations) == (3, 6)
    assert config.optimizer.micro_batch is not None
    assert 2 * config.optimizer.micro_batch == config.rollout.group_size, "groups of two micro-batches"
    assert (variant.kind == "exact") == (not variant.settings)


def test_savings_are_switched_off_and_on_again() -> None:
    graph, ema = accumulation.__dict__["statistic_of_bundle"], Policy.fast_is_policy
    for engine in ((), ("graph",), ("ema",), ("graph", "ema")):
        with as_before(engine):  # type: ignore[arg-type]
            assert (accumulation.__dict__["statistic_of_bundle"] is graph) == ("graph" in engine)
            assert (Policy.fast_is_policy is ema) == ("ema" in engine)
        assert accumulation.__dict__["statistic_of_bundle"] is graph
        assert Policy.fast_is_policy is ema


def rounds() -> list[Round]:
    names = [BASELINE, *(v.name for v in VARIANTS if v.settings)]
    optimize = {"": 2.0, "graph": 1.8, "ema": 1.5, "graph+ema": 1.3}
    return [
        Round({n: k * (1.0 - 0.05 * i) for i, n in enumerate(names)}, {e: k * s for e, s in optimize.items()})
        for k in (1.0, 1.1, 2.0)  # the machine was slower in the third
    ]


def test_an_equal_ema_saves_at_first_only() -> None:
    found = cost_of(NAMED["both"], rounds())
    assert (found.early, found.late) == pytest.approx((1.1 * 2.3, 1.1 * 2.8))
    assert cost_of(NAMED[BASELINE], rounds()) == Cost(*[pytest.approx(3.3)] * 2)


@pytest.mark.parametrize("budget", [0.5, 2.0, 4.0, 4.1, 30.0])
def test_iterations_take_the_seconds(budget: float) -> None:
    cost = Cost(2.0, 3.0)
    place = iterations_within(cost, budget)
    assert min(place, 2) * cost.early + max(place - 2, 0) * cost.late == pytest.approx(budget)


def test_a_score_is_on_the_line_between_its_neighbors() -> None:
    curve = {"3": 0.4, "4": 0.6}
    assert [at(curve, place) for place in (3, 3.25, 4)] == pytest.approx([0.4, 0.45, 0.6])


def recorded(path: Path, *, digests: dict[str, str] | None = None) -> dict[str, Any]:
    """A made-up record: every variant's gain grows with its number, except for the noise of the seeds."""
    noise = (0.0, 0.01, -0.01)
    data = {
        "quick": False, "budget": 20.0, "base": {str(s): 0.3 for s in range(3)},
        "facts": {"torch": "2", "cores": 2, "settings": {"rollout.guidance": 1.5, "rollout.group_size": 8}},
        "rounds": [{"rollouts": dict(r.rollouts), "optimize": dict(r.optimize)} for r in rounds()],
        "digests": digests or {v.name: "same" for v in VARIANTS if v.kind == "exact"},
        "iterations": {v.name: 6.5 for v in VARIANTS},
        "scores": {v.name: {str(s): 0.5 + 0.05 * i + noise[s] * (1 + i % 2) for s in range(3)}
                   for i, v in enumerate(VARIANTS)},
    }  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return data


def test_a_page_says_what_its_record_holds(tmp_path: Path) -> None:
    data = recorded(tmp_path / "seconds" / "record.json")
    record = load(tmp_path / "seconds" / "record.json")
    (last,) = (row for row in record.rows if row.variant.name == "all together")
    assert last.ratio.value == pytest.approx((0.75 + 1.8) / 3.0), "slow rounds do not change it"
    scores = data["scores"]
    differences = [scores["all together"][s] - scores[BASELINE][s] for s in "012"]
    low, high = stats.t.interval(0.95, 2, loc=statistics.fmean(differences), scale=stats.sem(differences))
    difference = last.result.difference
    assert difference is not None
    assert (difference.over_seeds.low, difference.over_seeds.high) == pytest.approx((low, high))
    assert verdict(last).startswith("`all together` scores more than the baseline: +0.400 [+")
    assert math.isclose(sum(row.equal for row in record.rows), 4), "exact variants had equal weights"
    text = write_page(tmp_path).read_text()
    assert "the weights of all exact variants were equal" in text
    assert "| all together | " in text
    assert "| 0.85 [" in text
    assert (tmp_path / "seconds" / "scores.png").stat().st_size > 10_000
    assert "| [seconds](seconds.md) | Savings at equal seconds | all together takes 0.85" in (
        write_index(tmp_path).read_text()
    )


def test_a_page_says_if_exact_variants_differ(tmp_path: Path) -> None:
    digests = {v.name: "same" for v in VARIANTS if v.kind == "exact"} | {"both": "other"}
    recorded(tmp_path / "seconds" / "record.json", digests=digests)
    assert "were NOT equal (both)" in write_page(tmp_path).read_text()


@pytest.mark.skipif(not (PAGES / "seconds" / "record.json").is_file(), reason="not recorded yet")
def test_the_page_is_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "seconds").mkdir()
    (tmp_path / "seconds" / "record.json").write_bytes((PAGES / "seconds" / "record.json").read_bytes())
    assert write_page(tmp_path).read_text() == (PAGES / "seconds.md").read_text()
