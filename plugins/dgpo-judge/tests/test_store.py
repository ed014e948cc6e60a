"""The journal and the cache: what was written is found again, whatever happens to the files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_judge.answers import Answer, Position
from dgpo_judge.demo_server import answer_to, completion, send
from dgpo_judge.store import SEGMENTS, Store

from .conftest import Playing, Respond, pictures, status
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
        first.put(key(number), kept(number + 1))
        first.put(key(number), kept(number))  # the later one counts
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
    """A failed request is asked again."""
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


def _without_probabilities(handler: Any, request: Any) -> None:
    answer = answer_to(request)
    answer["choices"][0]["logprobs"] = None
    send(handler, 200, json.dumps(answer).encode())


def _hesitating(handler: Any, request: Any) -> None:
    """Say something else with a probability of 0.6."""
    answer = answer_to(request)
    top = [{"token": "Well", "logprob": math.log(0.6)}, {"token": "Yes", "logprob": math.log(0.4)}]
    answer["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    send(handler, 200, json.dumps(answer).encode())


def _saying(text: str, finish: str = "stop") -> Respond:
    return lambda handler, request: send(handler, 200, json.dumps(completion(request, text, finish=finish)).encode())


@pytest.mark.parametrize("kept_in", ["journal", "cache"])
@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, status(200, b'{"choices": []}')),
        ({}, _without_probabilities),
        ({}, _hesitating),
        ({"form": "soft-tifa"}, _without_probabilities),
        ({"form": "rating"}, _hesitating),
        ({"form": "rubric"}, _saying("I rate it 5 out of 5.")),
        ({"form": "rubric"}, _saying('{"alignment": 5', "length")),
        ({"form": "rubric"}, _saying('{"alignment": 5}')),
    ],
)
def test_answers_without_use_are_asked_for_again(
    play: Play, judge: Judge, tmp_path: Path, options: dict[str, Any], fault: Respond, kept_in: str
) -> None:
    """A server that was started wrongly, and then rightly, has no lasting effect."""
    server, media = play(fault), pictures(2)

    def scores() -> Any:
        reward = judge(server, **options, **({"cache": str(tmp_path)} if kept_in == "cache" else {}))
        if kept_in == "journal":
            reward.keep_in(tmp_path)
        return reward.score(media, prompts(2))

    assert scores().missing.all()
    server.play = None
    assert not scores().missing.any()
    asked = len(server.requests)
    assert not scores().missing.any()
    assert len(server.requests) == asked


@pytest.mark.parametrize("kind", ["pairs", "list"])
def test_comparisons_without_use_are_asked_for_again(play: Play, judge: Judge, tmp_path: Path, kind: str) -> None:
    server, media = play(_saying("neither")), pictures(3)

    def missing() -> torch.Tensor:
        reward = judge(server, kind, cache=str(tmp_path))
        found: torch.Tensor = reward.score_group(media, Prompt("a cat"), [("key", i) for i in range(3)]).missing
        return found

    assert missing().all()
    server.play = None
    assert not missing().any()


def test_answers_that_an_earlier_version_kept_are_replaced(play: Play, judge: Judge, tmp_path: Path) -> None:
    reward = judge(play(), cache=str(tmp_path / "cache"))
    reward.keep_in(tmp_path / "journal")
    (question,) = reward._questions(pictures(1)[0], prompts(1)[0])
    digest = reward.judge.digest(question)
    reward.judge._journal.put(digest, Answer(problem="the answer has no `message`"))
    reward.judge._cache.put(reward.judge._cached(digest), Answer("Yes", "stop"))
    assert not reward.score(pictures(1), prompts(1)).missing.any()
    for store, name in ((Store(tmp_path / "journal", 1), digest), (reward.judge._cache, reward.judge._cached(digest))):
        answer = store.get(name)
        assert answer is not None
        assert answer.tokens


def test_equal_questions_have_one_answer_and_so_has_a_resumed_run(play: Play, judge: Judge, tmp_path: Path) -> None:
    """Within a batch, and in batches at once, although the server never answers equally."""
    count, together = itertools.count(1), threading.Barrier(2)

    def varies(handler: Any, request: Any) -> None:
        together.wait(20)
        answer, p = answer_to(request), 0.5 + 0.4 / next(count)
        top = [{"token": "Yes", "logprob": math.log(p)}, {"token": "No", "logprob": math.log(1 - p)}]
        answer["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        send(handler, 200, json.dumps(answer).encode())

    server, media = play(varies), pictures(1).repeat(2, 1, 1, 1)
    reward = judge(server)
    reward.keep_in(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        batches = [pool.submit(reward.score, media, prompts(1) * 2) for _ in range(2)]
        values = torch.cat([batch.result().values for batch in batches])
    assert len(server.requests) == 2, "once in each batch"
    assert len(set(values.tolist())) == 1
    again = judge(server)
    again.keep_in(tmp_path)
    assert torch.equal(again.score(media, prompts(1) * 2).values, values[:2])
    assert len(server.requests) == 2


def test_equal_questions_with_different_expected_answers(play: Play, judge: Judge) -> None:
    server, asked = play(), {"questions": [["Is it red?", "yes"], ["Is it red?", "no"]]}
    scores = judge(server, form="soft-tifa", mean="arithmetic").score(pictures(1), [Prompt("a cat", asked)])
    first, second = scores.diagnostics[0]["probabilities"]
    assert first + second == pytest.approx(1)
    assert first != second
    assert len(server.requests) == 1


def test_processes_that_begin_at_once_see_whole_files(play: Play, judge: Judge, tmp_path: Path) -> None:
    """`judge.json` is never opened for writing: what takes its place has been written."""
    path, watched, put = tmp_path / "judge.json", [True], []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:  # cannot be removed, only silenced
        if watched and event == "open" and str(arguments[0]) == str(path):
            assert not arguments[2] & (os.O_WRONLY | os.O_RDWR), "another process may read a part"
        elif watched and event == "os.rename" and str(arguments[1]) == str(path):
            put.append(json.loads(Path(arguments[0]).read_text())["model"])

    sys.addaudithook(watch)
    try:
        judge(play()).keep_in(tmp_path)
    finally:
        watched.clear()
    assert put == ["demo-judge"]
    assert list(tmp_path.iterdir()) == [path]


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
