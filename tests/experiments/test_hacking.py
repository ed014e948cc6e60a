"""What the page of E11 says of a flawed reward, on made-up curves."""

from __future__ import annotations

import pytest
from scipy import stats

from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import compare
from dgpo_lab.ablation.traces import MonitorValues, Trace
from experiments.hacking import Hacking


def trace(variant: str, seed: int, scores: list[float], flawed: list[float], left: int | None) -> Trace:
    monitors = {"diversity": MonitorValues(0.5, 0.2, left is not None, [0.5, 0.4, 0.2], left)}
    if variant != "honest":
        monitors["flawed"] = MonitorValues(flawed[0], flawed[-1], False, flawed, None)
    return Trace(
        variant=variant, seed=seed, state=State("finished"), ended_by="iterations", iterations=[0, 10, 20],
        scores=scores, seconds=[0.0, 1.0, 2.0], samples=[0, 96, 192], monitors=monitors,
    )  # fmt: skip


TRACES = [
    trace("none", 0, [0.2, 0.5, 0.30], [0.4, 0.6, 0.8], 10),
    trace("none", 1, [0.2, 0.4, 0.25], [0.4, 0.6, 0.9], 20),
    trace("none", 2, [0.2, 0.6, 0.35], [0.4, 0.6, 0.7], None),
    trace("honest", 0, [0.2, 0.3, 0.40], [], None),
    trace("honest", 1, [0.2, 0.3, 0.50], [], None),
]


@pytest.fixture
def hacking() -> Hacking:
    named = {name: {"setting": name} for name in ("none", "honest")}
    return Hacking(compare(named, TRACES, reward="right", baseline="none", target=None))


def test_what_is_lost_is_counted_from_the_best_mean(hacking: Hacking) -> None:
    none, honest = hacking.results.variants
    lost = hacking.lost(none)
    low, high = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem([0.2, 0.15, 0.25]))
    assert (lost.value, lost.low, lost.high) == pytest.approx((0.2, low, high))
    assert hacking.lost(honest).value == 0
    assert hacking.change(honest).value == pytest.approx(0.25)
    assert hacking.flawed(none).value == pytest.approx(0.4)  # type: ignore[union-attr]
    assert hacking.flawed(honest) is None


def test_alarms_are_counted_over_seeds(hacking: Hacking) -> None:
    none, honest = hacking.results.variants
    assert hacking.monitors == ["diversity"]
    assert hacking.alarm(none, "diversity").text() == "2 of 3 seeds, after 15"
    assert hacking.alarm(honest, "diversity").text() == "0 of 2 seeds"


def test_the_headline_names_those_that_end_below_their_maximum(hacking: Hacking) -> None:
    assert hacking.exploited() == ["none"]
    assert hacking.headline().startswith("The flaw was exploited within 192 samples by `none`")


def test_a_fall_is_said_only_where_the_interval_excludes_zero(hacking: Hacking) -> None:
    none, honest, diversity = hacking.sentences()
    assert "; it ends 0.200 [0.0" in none
    assert "flawed reward changed by +0.400" in none
    assert "ends" not in honest
    assert "flawed" not in honest
    assert diversity == "`diversity` left its tolerance in the baseline in 2 of 3 seeds, after 15."


def test_what_is_seen_is_what_every_seed_of_the_baseline_shows(hacking: Hacking) -> None:
    """And where the flaw was not exploited."""
    assert hacking.seen() == (
        "Monitors that left their tolerance in every seed of `none`, with the iterations until then: none. Where the "
        "flaw was not exploited, none did in any seed."
    )
    alarmed = trace("none", 2, [0.2, 0.6, 0.35], [0.4, 0.6, 0.7], 20), trace("honest", 2, [0.2, 0.3, 0.40], [], 10)
    named = {name: {"setting": name} for name in ("none", "honest")}
    traces = [*TRACES[:2], *TRACES[3:], *alarmed]
    found = Hacking(compare(named, traces, reward="right", baseline="none", target=None)).seen()
    assert "until then: `diversity` after 20. Where the flaw was not exploited, some did in `honest`." in found
