"""What rewards may take: memory, which is halved; media in flight, which are few; and what they may throw."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_core.training.memory as memory
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.stopping import Interrupted, StopRequest
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import BrightnessReward
from dgpo_schemas.run import RunConfig

LONG = 10.0
PROMPTS = [Prompt(f"image {i}") for i in range(12)]


class Scripted(RewardModel):
    """Scores as a function says, and remembers the sizes of its batches."""

    range = (0.0, 1.0)

    def __init__(self, function: Callable[[Tensor, Sequence[Prompt]], Any], is_remote: bool = False) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.function, self.sizes = function, list[int]()
        self.is_remote = is_remote  # type: ignore[misc]

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Any:
        self.sizes.append(len(prompts))
        return self.function(media, prompts)


def levels(count: int) -> Tensor:
    return torch.arange(1, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 16


def brightness(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
    values = media.flatten(1).mean(1)
    return Scores(values, torch.zeros(len(media), dtype=torch.bool), [{"seen": p.text} for p in prompts])  # type: ignore[arg-type]


def fits(most: int, error: BaseException) -> Callable[[Tensor, Sequence[Prompt]], Scores]:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if len(prompts) > most:
            raise error
        return brightness(media, prompts)

    return score


# -- memory ---------------------------------------------------------------------------------------------------------

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA error: out of memory"),
    OutOfMemory("told by a worker"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}{len(str(error))}")
def test_a_batch_that_does_not_fit_is_scored_in_halves(
    error: BaseException, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    monkeypatch.setattr(memory, "free", lambda: freed.append(1))
    model = Scripted(fits(2, error))
    reward, failures = Reward("r", 1.0, model), list[str]()
    for _ in range(2):
        found = checked_score(reward, levels(7), PROMPTS[:7], failures)
        assert found.values.tolist() == levels(7)[:, 0, 0, 0].tolist()
        assert not found.missing.any()
        assert [said["seen"] for said in found.diagnostics] == [p.text for p in PROMPTS[:7]]
    assert model.sizes == [7, 4, 2, 2, 3, 2, 1] * 2, "the same whatever came before"
    assert len(freed) == 2 * 3, "the card's cache is emptied before each halving"
    assert failures == []
    (record,) = caplog.records
    assert "reward r: out of memory; such batches are scored in halves" in record.getMessage()


def test_a_sample_that_does_not_fit_alone_is_missing_by_itself() -> None:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if any(prompt.text == "image 2" for prompt in prompts):
            raise torch.OutOfMemoryError("too large")
        return brightness(media, prompts)

    reward, failures = Reward("r", 1.0, Scripted(score)), list[str]()
    found = checked_score(reward, levels(5), PROMPTS[:5], failures)
    assert found.missing.tolist() == [False, False, True, False, False]
    assert found.diagnostics[2] == {"reason": "out of memory, with 1 sample: OutOfMemoryError: too large"}
    assert failures == ["r: out of memory, with 1 sample: OutOfMemoryError: too large"]


def test_another_failure_of_a_half_is_that_of_the_batch() -> None:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if len(prompts) > 2:
            raise MemoryError
        raise RuntimeError("no lamp")

    found = checked_score(Reward("r", 1.0, Scripted(score)), levels(4), PROMPTS[:4])
    assert found.missing.all()
    assert found.diagnostics[3] == {"reason": "RuntimeError: no lamp"}


# -- media in flight ------------------------------------------------------------------------------------------------


def submitted(scorer: Scorer, count: int, interrupt: Callable[[], None] = lambda: None) -> None:
    media = levels(12)
    for i in range(count):
        scorer.submit(media[i : i + 1], PROMPTS[i : i + 1], interrupt)


@pytest.mark.parametrize("in_flight", [0, 1, 3, None])
def test_the_numbers_are_the_same_however_many_may_wait(in_flight: int | None) -> None:
    scorer = Scorer([Reward("a", 1.0, Scripted(brightness)), Reward("b", 1.0, Scripted(brightness))], None, in_flight)
    submitted(scorer, 12)
    scored = scorer.collect()
    scorer.close()
    assert scored.values["a"].tolist() == scored.values["b"].tolist() == levels(12)[:, 0, 0, 0].double().tolist()


@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("labels", ["a", "ab"])
def test_no_more_are_decoded_than_may_wait(in_flight: int, labels: str) -> None:
    """One at work, `in_flight` that wait: the next one is not even begun."""
    go, blocked = threading.Event(), threading.Event()

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert go.wait(LONG)
        return brightness(media, prompts)

    model = Scripted(score)
    scorer = Scorer([Reward(label, 1.0, model) for label in labels], None, in_flight)
    done: list[int] = []

    def draw() -> None:
        for i in range(6):
            submitted_one(i)
            done.append(i)

    def submitted_one(i: int) -> None:
        scorer.submit(levels(12)[i : i + 1], PROMPTS[i : i + 1], blocked.set if i == in_flight + 1 else lambda: None)

    thread = threading.Thread(target=draw)
    thread.start()
    assert blocked.wait(LONG), "it waits for room"
    assert done == list(range(in_flight + 1))
    go.set()
    thread.join(LONG)
    assert scorer.collect().values["a"].tolist() == levels(6)[:, 0, 0, 0].double().tolist()
    assert scorer.waited == 0
    scorer.close()


def test_a_run_that_is_stopped_does_not_wait_for_room() -> None:
    go = threading.Event()

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert go.wait(LONG)
        return brightness(media, prompts)

    scorer = Scorer([Reward("a", 1.0, Scripted(score))], None, 1)

    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        submitted(scorer, 12, stop)
    scorer.discard()
    submitted(scorer, 1, stop)  # what was dropped takes no room
    go.set()
    assert scorer.collect().values["a"].tolist() == levels(1)[:, 0, 0, 0].double().tolist()
    scorer.close()
    with pytest.raises(RuntimeError, match="the rewards are closed"):
        submitted(scorer, 1)


def test_a_run_that_is_stopped_does_not_wait_for_the_last_scores(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., RunConfig], registry: Registry
) -> None:
    """The reward answers no more once it is asked for the second iteration, or for the evaluation after it."""
    config = make_config(run={"iterations": 4}, evaluation={"every": 2, "at_start": False}, checkpoints={"every": 100})
    whole, go, lines = BrightnessReward.score, threading.Event(), run_path(config) / "metrics.jsonl"
    monkeypatch.setattr("dgpo_core.training.executors.PATIENCE", 0.01)
    for iterations in (1, 2):
        stop = StopRequest()

        def hanging(self: BrightnessReward, *arguments: Any, done: int = iterations, stop: StopRequest = stop) -> Any:
            if lines.is_file() and len(lines.read_bytes().splitlines()) >= done:
                stop.request()
                assert go.wait(LONG)
            return whole(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(BrightnessReward, "score", hanging)
            assert Trainer(config, registry, stop=stop).train(resume=iterations > 1) == "interrupted"
        newest = sorted(path.name for path in (run_path(config) / "checkpoints").iterdir())[-1]
        assert newest == f"{iterations:06d}"
        assert not (run_path(config) / "evaluations.jsonl").exists()
    go.set()


# -- what a reward may throw ----------------------------------------------------------------------------------------


class Odd(BaseException):
    """No Exception."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def raising(error: BaseException) -> Callable[[Tensor, Sequence[Prompt]], Scores]:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        raise error

    return score


THROWN = [
    (Odd("strange"), "Odd: strange"),
    (SystemExit(0), "SystemExit: 0"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (GeneratorExit(), "GeneratorExit"),
    (StopIteration(3), "StopIteration: 3"),
    (Mute(), "Mute: (no message: __str__ raised RuntimeError)"),
    (UserError("options.x: is odd"), "options.x: is odd"),
    (RuntimeError("a\x1b[31mb"), "RuntimeError: a\\x1b[31mb"),
    (RuntimeError("\ud800"), "RuntimeError: \\ud800"),
]


@pytest.mark.parametrize(("error", "reason"), THROWN, ids=lambda value: type(value).__name__)
def test_whatever_is_thrown_the_samples_are_missing(
    error: BaseException, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    reward, failures = Reward("r", 1.0, Scripted(raising(error))), list[str]()
    found = checked_score(reward, levels(2), PROMPTS[:2], failures)  # on the main thread
    assert found.missing.tolist() == [True, True]
    assert found.diagnostics == ({"reason": reason},) * 2
    assert failures == [f"r: {reason}"]
    assert reason in caplog.text
    scorer = Scorer([reward, Reward("good", 1.0, Scripted(brightness))])
    submitted(scorer, 2)
    scored = scorer.collect()
    scorer.close()
    assert scored.values["r"].isnan().all()
    assert scored.values["good"].isfinite().all()


def test_ctrl_c_itself_is_passed_on() -> None:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        os.kill(os.getpid(), signal.SIGINT)
        return brightness(media, prompts)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        checked_score(Reward("r", 1.0, Scripted(score)), levels(1), PROMPTS[:1])
    assert signal.getsignal(signal.SIGINT) is before


def test_traces_are_logged_at_most_where_they_can_be_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    checked_score(Reward("r", 1.0, Scripted(raising(RuntimeError("no lamp")))), levels(1), PROMPTS[:1])
    assert "Traceback" in caplog.text
