"""Judges of groups against the demo server: values by the closed form, whatever the order of the members."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpo_core.types import Prompt, SampleKey
from dgpo_judge.demo_server import answer_to, send

from .conftest import Playing, first, good, pictures, red, status

Judge = Callable[..., Any]
Play = Callable[..., Playing]
PROMPT = Prompt("a cat")


def keys(count: int) -> list[SampleKey]:
    return [("iteration", 1, "rollout", 2, (7 * i) % 11) for i in range(count)]


def test_pairs_are_exact(play: Play, judge: Judge) -> None:
    """The demo server's P(1) is m1 / (m1 + m2): the win rate is its mean over the others."""
    server, media = play(), pictures(7)
    m = red(media)
    scores = judge(server, "pairs").score_group(media, PROMPT, keys(7))
    expected = torch.stack([(m[i] / (m[i] + m))[torch.arange(7) != i].mean() for i in range(7)])
    assert torch.allclose(scores.values.double(), expected, rtol=0, atol=1e-7)
    assert len(server.requests) == 7 * 6
    assert {tuple(entry["subscores"].items()) for entry in scores.diagnostics} == {(("answered", 1.0), ("bias", 0.5))}


@pytest.mark.parametrize("combine", [None, "win-rate"])
def test_a_ring_of_opponents(play: Play, judge: Judge, combine: str | None) -> None:
    server, media = play(), pictures(9)
    scores = judge(server, "pairs", opponents=4, combine=combine).score_group(media, PROMPT, keys(9))
    assert len(server.requests) == 9 * 4
    assert not scores.missing.any()
    assert scores.values.double().mean() == pytest.approx(0.5, abs=1e-6)
    if combine is None:
        assert scores.values.argsort().tolist() == red(media).argsort().tolist()


def test_a_judge_that_favors_the_first_favors_nobody(play: Play, judge: Judge) -> None:
    """Both orders are asked; the bias is reported."""

    def biased(handler: Any, request: Any) -> None:
        data = answer_to(request)
        top = [{"token": token, "logprob": math.log(p)} for token, p in (("1", 0.8), ("2", 0.2))]
        data["choices"][0]["logprobs"]["content"] = [{**top[0], "top_logprobs": top}]
        send(handler, 200, json.dumps(data).encode())

    scores = judge(play(biased), "pairs").score_group(pictures(4), PROMPT, keys(4))
    assert scores.values.tolist() == pytest.approx([0.5] * 4, abs=1e-7)
    assert scores.diagnostics[0]["subscores"]["bias"] == pytest.approx(0.8)


def test_ties(play: Play, judge: Judge) -> None:
    media = pictures(2)
    assert judge(play(), "pairs", tie_band=0.49).score_group(media, PROMPT, keys(2)).values.tolist() == [0.5, 0.5]


def blind(m: float) -> Callable[[Any, Any], None]:
    """Refuse every picture of this redness, which may be shown with others."""

    def play(handler: Any, request: Any) -> None:
        from dgpo_judge.demo_server import redness

        parts = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]
        if any(abs(redness(part["image_url"]["url"]) - m) < 1e-9 for part in parts):
            return send(handler, 200, b'{"choices": []}')
        return good(handler, request)

    return play


def test_a_member_that_the_judge_cannot_see_is_missing_alone(play: Play, judge: Judge) -> None:
    media = pictures(5)
    m = red(media)
    scores = judge(play(blind(float(m[2]))), "pairs").score_group(media, PROMPT, keys(5))
    assert scores.missing.tolist() == [False, False, True, False, False]
    others = [0, 1, 3, 4]
    expected = [float(torch.stack([m[i] / (m[i] + m[j]) for j in others if j != i]).mean()) for i in others]
    assert scores.values[others].tolist() == pytest.approx(expected, abs=1e-7)
    assert "no `choices`" in scores.diagnostics[2]["reason"]
    assert scores.diagnostics[0]["subscores"]["answered"] == 0.75


def test_fewer_than_half_of_the_answers_is_missing(play: Play, judge: Judge) -> None:
    """A pair that was answered in one order only is no comparison."""
    lost = status(200, b'{"choices": []}')
    reward = judge(play(first(good, lost, then=lost)), "pairs", concurrency=1)
    scores = reward.score_group(pictures(2), PROMPT, keys(2))
    assert scores.missing.all()


def test_lists_are_exact(play: Play, judge: Judge) -> None:
    server, media = play(), pictures(6)[torch.tensor([3, 0, 5, 1, 4, 2])]
    scores = judge(server, "list", shuffles=3).score_group(media, PROMPT, keys(6))
    assert scores.values.tolist() == pytest.approx([r / 5 for r in red(media).argsort().argsort().tolist()], abs=1e-7)
    assert scores.diagnostics[0]["subscores"] == {"disagreement": 0.0}
    shown = [
        [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]] for request in server.requests
    ]
    assert len(shown) == 3
    assert len({tuple(urls) for urls in shown}) == 3
    assert "call them A, B, C, D, E, F" in server.requests[0]["messages"][0]["content"][-1]["text"]


def test_a_judge_that_ranks_by_place_alone(play: Play, judge: Judge) -> None:
    """Mean ranks follow the orders of the keys, and the disagreement shows."""

    def by_place(handler: Any, request: Any) -> None:
        data = answer_to(request)
        data["choices"][0]["message"]["content"] = '{"ranking": ["A", "B", "C", "D"]}'
        send(handler, 200, json.dumps(data).encode())

    scores = judge(play(by_place), "list", shuffles=8).score_group(pictures(4), PROMPT, keys(4))
    assert scores.values.double().mean() == pytest.approx(0.5)
    assert scores.diagnostics[0]["subscores"]["disagreement"] > 0.2


def test_lists_that_are_too_long(play: Play, judge: Judge) -> None:
    many = torch.rand(27, 3, 32, 32)
    scores = judge(play(), "list").score_group(many, PROMPT, [("i", i) for i in range(27)])
    assert scores.missing.all()
    assert scores.diagnostics[0]["reason"].startswith("a group of 27 has more members than the 26 letters")


@pytest.mark.parametrize("kind", ["pairs", "list"])
def test_permutations_permute_the_bits(play: Play, judge: Judge, kind: str) -> None:
    media, here = pictures(8), keys(8)
    for options in ({}, {"opponents": 4}) if kind == "pairs" else ({},):
        reward = judge(play(), kind, **options)
        before = reward.score_group(media, PROMPT, here).values
        for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 4, 0, 5, 2, 6, 7]):
            found = reward.score_group(media[order], PROMPT, [here[i] for i in order]).values
            assert torch.equal(found, before[order])


@pytest.mark.parametrize("kind", ["pairs", "list"])
def test_members_that_are_no_pixels_are_missing_alone(play: Play, judge: Judge, kind: str) -> None:
    media = pictures(4)
    media[1] = 2.0
    scores = judge(play(), kind).score_group(media, PROMPT, keys(4))
    assert scores.missing.tolist() == [False, True, False, False]
    assert scores.diagnostics[1]["reason"] == "the media have values that are not in [0, 1]"
    assert judge(play(), kind).score_group(media[:2], PROMPT, keys(2)).missing.all()


@pytest.mark.parametrize("kind", ["pairs", "list"])
def test_videos(play: Play, judge: Judge, kind: str) -> None:
    media = pictures(3, size=(5, 3, 32, 32))
    scores = judge(play(), kind, frames=2).score_group(media, PROMPT, keys(3))
    assert scores.values.argsort().tolist() == [0, 1, 2]
