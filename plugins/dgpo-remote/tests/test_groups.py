"""Group rewards in workers and behind services: whole groups with their keys, bit-identical to a local reward."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from dgpo_core.contracts import GroupReward, RewardModel
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.reward_calls import Reward, checked_group
from dgpo_core.types import Prompt, SampleKey
from dgpo_kit.contracts import check_group_reward
from dgpo_kit.toy import WinRate, WinRateOptions
from dgpo_remote.messages.blobs import Blob
from dgpo_remote.messages.scores import read_score_answer, read_score_request, score_request
from dgpo_schemas.service import SAFETENSORS

CPU = torch.device("cpu")
PROMPT = Prompt("a lamp", {"tag": "x"})
MEDIA = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
KEYS: list[SampleKey] = [("iteration", 2**40, "rollout", 3, (7 * i) % 5) for i in range(5)]
OPTIONS = {"opponents": 2}
HERE = WinRate(WinRateOptions(opponents=2), device=CPU)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def running(serve_all_along: Make) -> Any:
    return serve_all_along("win-rate", reward={"use": "win-rate", "options": OPTIONS}, batching={"max_batch": 3})


@pytest.fixture(params=["worker", "service"])
def there(request: pytest.FixtureRequest, make: Make, running: Any) -> Any:
    place = {"worker": {}} if request.param == "worker" else {"service": {"urls": [running.url]}}
    return make("win-rate", options=OPTIONS, **place)


def test_keys_arrive_unchanged() -> None:
    found = read_score_request(Blob(score_request(MEDIA, [PROMPT] * 5, keys=KEYS)))
    assert found.keys == KEYS
    assert read_score_request(Blob(score_request(MEDIA, [PROMPT] * 5))).keys is None


def test_a_group_has_the_same_scores_everywhere(there: Any) -> None:
    assert isinstance(there, GroupReward)
    assert not isinstance(there, RewardModel)
    found, expected = there.score_group(MEDIA, PROMPT, KEYS), HERE.score_group(MEDIA, PROMPT, KEYS)
    assert found.values.equal(expected.values)
    assert [dict(one) for one in found.diagnostics] == [dict(one) for one in expected.diagnostics]
    assert (there.range, there.media, there.is_remote) == ((0.0, 1.0), frozenset({"image"}), True)


def test_a_remote_group_reward_implements_the_contract(there: Any) -> None:
    check_group_reward(there, MEDIA, PROMPT)


@pytest.mark.parametrize("place", ["worker", "service"])
def test_a_failure_makes_the_group_missing(
    place: str, make: Make, serve: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    options = {"fail": True}
    url = serve("win-rate", reward={"use": "win-rate", "options": options}).url if place == "service" else ""
    there = make("win-rate", options=options, **{place: {"urls": [url]} if url else {}})
    found = checked_group(Reward("wins", 1.0, there), MEDIA, PROMPT, KEYS)
    assert found.missing.all()
    assert {one["reason"] for one in found.diagnostics} == {"RuntimeError: the judge is asleep"}


# -- requests of other clients ----------------------------------------------------------------------------------------


def post(running: Any, body: bytes) -> httpx.Response:
    headers = {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}
    return httpx.post(f"{running.url}/v1/score", content=body, headers=headers)


def test_without_keys_the_samples_of_a_prompt_are_a_group(running: Any) -> None:
    prompts = [Prompt(text) for text in ("a", "b", "a", "c", "b")]
    found = read_score_answer(Blob(post(running, score_request(MEDIA, prompts)).content))
    for rows in ([0, 2], [1, 4]):
        expected = HERE.score_group(MEDIA[rows], prompts[rows[0]], [(i,) for i in rows])
        assert found.values[rows].equal(expected.values)
    assert found.missing.tolist() == [False, False, False, True, False]
    assert "nothing to compare it with" in found.diagnostics[3]["reason"]


def test_only_the_nonfinite_member_is_missing(running: Any) -> None:
    media = MEDIA.clone()
    media[1, 0, 0, 0] = torch.nan
    rows = [0, 2, 3, 4]
    found = read_score_answer(Blob(post(running, score_request(media, [PROMPT] * 5, keys=KEYS)).content))
    assert found.missing.tolist() == [False, True, False, False, False]
    assert found.values[rows].equal(HERE.score_group(media[rows], PROMPT, [KEYS[i] for i in rows]).values)


def image(level: int, side: int) -> str:
    file = BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_images_of_a_prompt_are_a_group_if_they_have_one_size(running: Any) -> None:
    sent = [("a", 10, 8), ("b", 10, 8), ("a", 200, 8), ("b", 20, 9), ("a", 90, 8)]
    samples = [{"image": image(level, side), "prompt": text} for text, level, side in sent]
    data = httpx.post(f"{running.url}/v1/score", json={"samples": samples}).json()
    assert [data["values"][i] for i in (0, 2, 4)] == [0.0, 1.0, 0.5]
    assert data["missing"] == [False, True, False, True, False]
    assert "have several sizes" in data["diagnostics"][1]["reason"]


def test_keys_are_refused_unless_it_is_a_group_reward(serve: Make) -> None:
    answer = post(serve("brightness"), score_request(MEDIA, [PROMPT] * 5, keys=KEYS))
    assert answer.status_code == 422
    assert "brightness scores each sample independently; omit `keys`" in answer.json()["error"]["message"]


def test_a_group_beyond_max_samples_is_missing(serve: Make, make: Make, rewards: Registry) -> None:
    """It is not split into halves."""
    running = serve("win-rate", reward={"use": "win-rate", "options": OPTIONS}, limits={"max_samples": 4})
    there = make("win-rate", options=OPTIONS, service={"urls": [running.url]})
    found = checked_group(Reward("wins", 1.0, there), MEDIA, PROMPT, KEYS)
    assert found.missing.all()
    assert "5 samples; at most 4 are allowed (limits.max_samples)" in found.diagnostics[0]["reason"]
    assert not checked_group(Reward("wins", 1.0, there), MEDIA[:4], PROMPT, KEYS[:4]).missing.any()
