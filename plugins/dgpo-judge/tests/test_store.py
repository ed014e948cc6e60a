"""The journal and the cache: what was written is found again, whatever happens to the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_judge.answers import Answer, Position
from dgpo_judge.store import SEGMENTS, Store

from .conftest import Playing, pictures, status
from .test_rewards import prompts

Judge = Callable[..., Any]
Play = Callable[..., Playing]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def kept(number: int) -> Answer:
    return Answer(
        f"Yes \u2581\ud83d {number}", "stop", (Position("Yes", (("Yes", -0.1 - number / 7),)),), None, number, 1
    )


def test_answers_are_found_again(tmp_path: Path) -> None:
    first = Store(tmp_path / "a" / "b", 1)
    for number in range(100):
        first.put(key(number), kept(number))
        first.put(key(number), kept(number + 1))
    for store in (first, Store(tmp_path / "a" / "b", 1)):
        assert [store.get(key(number)) for number in range(100)] == [kept(number) for number in range(100)]
        assert store.get(key(100)) is None


def test_many_threads_and_processes_write_at_once(tmp_path: Path) -> None:
    stores = [Store(tmp_path, 1) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: stores[n % 3].put(key(n), kept(n)), range(300)))
    again = Store(tmp_path, 1)
    assert len(again) == 300
    assert all(again.get(key(n)) == kept(n) for n in range(300))


@pytest.mark.parametrize("damage", ["cut", "changed", "garbage", "empty"])
def test_damaged_lines_are_lost_alone(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, 1)
    for number in range(3):
        store.put(key(number), kept(number))
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "cut":
        lines[-1] = lines[-1][:-5]
    else:
        lines[-1] = {"changed": lines[-1].replace(b"Yes", b"Yet"), "garbage": b"\xff\x00 \n", "empty": b"\n"}[damage]
    path.write_bytes(b"".join(lines))
    again = Store(tmp_path, 1)
    assert [again.get(key(number)) for number in range(3)] == [kept(0), kept(1), None]
    again.put(key(2), kept(2))
    assert Store(tmp_path, 1).get(key(2)) == kept(2)
    path.unlink()
    assert again.get(key(0)) is None, "another process deleted it"


def test_the_oldest_answers_are_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path, 1)
    long = "x" * 5000
    for number in range(400):  # 2 MB
        store.put(key(number), Answer(long, "stop"))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) <= 2**20
    assert max(sizes) <= 2**20 // SEGMENTS
    assert store.get(key(0)) is None
    assert all(store.get(key(number)) for number in range(250, 400))
    assert len(Store(tmp_path, 1)) == len(store)


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot keep answers"):
        Store(tmp_path / "file", 1)


def test_a_journal_repeats_answers_and_asks_nothing(play: Play, judge: Judge, tmp_path: Path) -> None:
    """Also those that no form can read; a failed request is asked again."""
    server, media = play(), pictures(4)
    reward = judge(server)
    reward.keep_in(tmp_path / "journal")
    before = reward.score(media, prompts(4)).values
    server.play = status(500)
    again = judge(server, retries=0)
    again.keep_in(tmp_path / "journal")
    assert torch.equal(again.score(media, prompts(4)).values, before)
    assert again.costs()["from_journal"] == 4
    assert again.score(pictures(1, seed=1), prompts(1)).missing.all()
    server.play = None
    assert not again.score(pictures(1, seed=1), prompts(1)).missing.any()
    server.play = status(200, b'{"choices": []}')
    assert again.score(pictures(1, seed=2), prompts(1)).missing.all()
    asked = len(server.requests)
    third = judge(server)
    third.keep_in(tmp_path / "journal")
    assert third.score(pictures(1, seed=2), prompts(1)).missing.all()
    assert len(server.requests) == asked


def test_a_journal_is_of_one_judge(play: Play, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(play()).keep_in(tmp_path)
    about = json.loads((tmp_path / "judge.json").read_text())
    assert about["model"] == "demo-judge"
    assert about["served"]["owned_by"] == "dgpo-judge"
    judge(play()).keep_in(tmp_path)
    template = tmp_path / "mine.txt"
    template.write_text('Is this "{prompt}"? Yes or No?')
    with pytest.raises(UserError, match=r"judge.json: this run was judged with template \w+, and the reward"):
        judge(play(), template=str(template)).keep_in(tmp_path)
    monkeypatch.setattr("dgpo_judge.demo_server.MODEL", "renamed")
    with pytest.raises(UserError, match="judged with model demo-judge, and the reward 'judge' now has renamed"):
        judge(play()).keep_in(tmp_path)


def test_a_cache_is_shared_and_keyed_by_everything(play: Play, judge: Judge, tmp_path: Path) -> None:
    server, media = play(), pictures(2)
    options = {"cache": str(tmp_path / "cache")}
    before = judge(server, **options).score(media, prompts(2)).values
    again = judge(server, **options)
    assert torch.equal(again.score(media, prompts(2)).values, before)
    assert again.costs()["from_cache"] == 2
    assert len(server.requests) == 2
    other_media = media.clone()
    other_media[0, 2, 0, 0] = 1 - other_media[0, 2, 0, 0].round()
    for changed in ({"seed": 1}, {"request": {"top_k": 1}}, {"form": "rating"}):
        judge(server, **options, **changed).score(media, prompts(2))
    judge(server, **options).score(other_media, prompts(2))
    judge(server, **options).score(media, prompts(3)[1:])
    judge(play(), **options).score(media, prompts(2))
    assert len(server.requests) == 2 + 3 * 2 + 1 + 2


def test_answers_without_use_are_not_cached(play: Play, judge: Judge, tmp_path: Path) -> None:
    server = play(status(200, b'{"choices": []}'))
    for _ in range(2):
        assert judge(server, cache=str(tmp_path)).score(pictures(1), prompts(1)).missing.all()
    assert len(server.requests) == 2
