"""The passes that processes make together: everyone's are in the order, and blank ones fill it up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_core.distributed.passes import ORDER, STRIDE, Pass, PassSchedule, merged
from dgpo_core.errors import PluginError

Sequences = list[list[Pass]]
sequences = st.lists(st.lists(st.sampled_from(ORDER), max_size=8), min_size=1, max_size=4)


def is_within(own: list[Pass], order: list[Pass]) -> bool:
    left = iter(order)
    return all(one in left for one in own)


@given(sequences)
def test_the_order_has_everyones_passes(passes: Sequences) -> None:
    order = merged(passes)
    assert all(is_within(own, order) for own in passes)
    assert max(map(len, passes)) <= len(order) <= sum(map(len, passes))
    assert merged([order, *passes]) == order


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from(ORDER))
def test_of_one_kind_it_is_the_most_that_anyone_makes(counts: list[int], kind: Pass) -> None:
    assert merged([[kind] * count for count in counts]) == [kind] * max(counts)


class Others:
    """Processes of which each says the same as in `passes`, and all of which are done at the end of it."""

    def __init__(self, passes: Sequences, *, least: int = 0) -> None:
        self.passes = passes
        self.looks = 0
        self._least = least

    def all_gather_object(self, own: list[Pass]) -> Sequences:
        assert own in self.passes
        return self.passes

    def all_reduce_min(self, number: int) -> int:
        self.looks += 1
        return min(number, self._least)


def schedule(others: Any) -> tuple[PassSchedule, list[Pass]]:
    made: list[Pass] = []
    return PassSchedule(others, made.append), made


@given(sequences)
def test_blank_passes_fill_the_order_up(passes: Sequences) -> None:
    for own in passes:
        one, blank = schedule(Others(passes))
        one.agree(own)
        made: list[Pass] = []
        for kind in own:
            before = len(blank)
            one.take(kind)
            made += [*blank[before:], kind]
        before = len(blank)
        one.finish()
        assert made + blank[before:] == merged(passes)


def test_it_ends_early_where_nobody_has_passes_left() -> None:
    own: list[Pass] = ["policy"] * (3 * STRIDE)
    others = Others([own, own], least=1)
    one, blank = schedule(others)
    one.agree(own)
    for _ in range(STRIDE + 1):
        one.take("policy")
    one.finish()
    assert len(blank) == STRIDE - 1, "up to the next look, which all take together"
    one.agree([*own])


def test_outside_of_a_phase_all_make_the_same_passes() -> None:
    one, blank = schedule(Others([]))
    one.take("gradient")
    one.finish()
    assert not blank


def test_the_last_pass_with_gradient_is_known() -> None:
    """Also where it is a dummy pass, and outside of a phase each is the last."""
    own: list[Pass] = ["base", "gradient", "base", "gradient", "base"]
    one, _ = schedule(Others([own, ["gradient"]]))
    assert one.last_gradient
    one.agree(own)
    found = []
    for kind in own:
        one.take(kind)
        found.append(one.last_gradient)
    assert found == [False, False, False, True, True]
    one.finish()
    assert one.last_gradient


def test_more_passes_than_agreed_are_an_error() -> None:
    one, _ = schedule(Others([["ema_fast"]]))
    one.agree(["ema_fast"])
    one.take("ema_fast")
    with pytest.raises(PluginError, match=r"run\.shard: the sampler makes more forward passes than"):
        one.take("ema_fast")
