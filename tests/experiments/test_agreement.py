"""Whether two worlds order methods alike: by the rule, on made-up contrasts."""

from __future__ import annotations

import pytest

from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import compare
from dgpo_lab.ablation.traces import Trace
from experiments.agreement import confirmed, pairs, verdict
from experiments.decisions import Decisions

NOISE = (-0.012, 0.004, 0.011, -0.006, 0.009, -0.003, 0.002, -0.008)


def world(effects: dict[str, float]) -> Decisions:
    """A world in which each change has an effect, with the same small noise over eight seeds."""
    traces = [
        Trace(variant=name, seed=seed, state=State("finished"), ended_by="iterations", iterations=[0, 10],
              scores=[0.3, 0.5 + effect + (noise * (1 + i) if name != "none" else 0)], seconds=[0.0, 1.0],
              samples=[0, 100])
        for i, (name, effect) in enumerate({"none": 0.0, **effects}.items())
        for seed, noise in enumerate(NOISE)
    ]  # fmt: skip
    named = {name: {"change": name} for name in dict.fromkeys(trace.variant for trace in traces)}
    return Decisions(compare(named, traces, reward="score", baseline="none", target=None))


STANDARD = {"a": -0.2, "b": -0.1, "c": 0.1, "d": 0.001}


@pytest.mark.parametrize(
    ("fast", "outcomes", "said"),
    [
        (STANDARD, ["same", "same", "same", "open"], "orders the methods alike: 3 of the 3"),
        ({**STANDARD, "c": 0.0}, ["same", "same", "standard only", "open"], "Undecided: 2 of the 3"),
        ({**STANDARD, "b": 0.1}, ["same", "opposite", "same", "open"], "does not order the methods alike: `b` has"),
        ({**STANDARD, "d": 0.2}, ["same", "same", "same", "fast only"], "orders the methods alike: 3 of the 3"),
    ],
)
def test_the_rule(fast: dict[str, float], outcomes: list[str], said: str) -> None:
    found = pairs(world(STANDARD), world(fast), 0.02)
    assert [pair.outcome for pair in found] == outcomes
    assert said in verdict(found)


def test_confirmed_is_what_is_better_in_both_worlds() -> None:
    """The largest effect in the standard world first. What is worse, or equivalent in one of them, is not."""
    standard = {"small": 0.1, "large": 0.2, "worse": -0.2, "nothing": 0.0, "only here": 0.2}
    fast = {"small": 0.3, "large": 0.1, "worse": -0.2, "nothing": 0.2, "only here": 0.0}
    assert confirmed(pairs(world(standard), world(fast), 0.02, "seconds")) == ["large", "small"]
    assert confirmed(pairs(world(fast), world(standard), 0.02, "seconds")) == ["small", "large"]
    assert confirmed([]) == []


def test_three_settled_contrasts_are_needed() -> None:
    some = {"a": -0.2, "b": -0.1, "d": 0.0}
    assert "only 2 contrasts are settled" in verdict(pairs(world(some), world(some), 0.02))


def test_changes_of_one_world_alone_are_left_out() -> None:
    assert [p.standard.name for p in pairs(world(STANDARD), world({"a": -0.2, "x": 1.0}), 0.02)] == ["a"]
