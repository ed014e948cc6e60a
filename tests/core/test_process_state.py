"""What a reward leaves changed in the process is put back and named, whichever thread it ran in, and told apart."""

from __future__ import annotations

import locale
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.process_state import RESTORE, ProcessState, changes, process_snapshot, put_back, thread_snapshot
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import BrightnessOptions, BrightnessReward
from dgpo_schemas.run import RunConfig

LONG = 20.0
"""Seconds after which a test that waits for what never comes fails."""

DEEDS: dict[str, Callable[[], Any]] = {
    "the working directory": lambda: os.chdir("/"),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "torch's float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn's flags": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "torch's attention kernels": lambda: torch.backends.cuda.enable_math_sdp(False),
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8"),
    "the level at which logging is disabled": lambda: logging.disable(logging.DEBUG),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "the signal handlers": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
}


@pytest.fixture(autouse=True)
def _same_afterwards() -> Iterator[None]:
    """Whatever a test does."""
    before = process_snapshot() | thread_snapshot()
    yield
    put_back(before, changes(before, process_snapshot() | thread_snapshot()))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "changed" in record.getMessage()]


@pytest.mark.parametrize("name", DEEDS)
def test_every_change_is_put_back_and_named_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    before = process_snapshot() | thread_snapshot()
    process_state = ProcessState()
    for _ in range(2):
        with process_state.around("reward lamp"):
            DEEDS[name]()
            assert changes(before, process_snapshot() | thread_snapshot()) == [name]
        assert changes(before, process_snapshot() | thread_snapshot()) == []
    (said,) = warned(caplog)
    assert said.startswith(f"reward lamp changed {name}, which it shares with the run")


def test_all_that_is_compared_is_tried_and_can_be_put_back() -> None:
    assert {*process_snapshot(), *thread_snapshot()} == set(DEEDS) == set(RESTORE)


def test_a_change_before_an_error_is_put_back_too(caplog: pytest.LogCaptureFixture) -> None:
    def fall() -> None:
        with ProcessState().around("reward lamp"):
            os.chdir("/")
            torch.set_default_dtype(torch.float64)
            raise UserError("no lamp")

    before = process_snapshot()
    with pytest.raises(UserError, match="no lamp"):
        fall()
    assert process_snapshot() == before
    assert "the working directory and torch's default dtype" in warned(caplog)[0]


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    process_state = ProcessState()
    with process_state.around("reward lamp"):
        os.chdir("/")
    with process_state.around("reward lamp"):
        pass
    os.chdir(tmp_path)


# -- several at the same time ---------------------------------------------------------------------------------------


class Acting(RewardModel):
    """Brightness, after what a function does."""

    range = (0.0, 1.0)

    def __init__(self, act: Callable[[], Any], concurrency: int = 1) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.act = act
        self.concurrency = concurrency

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.act()
        return Scores(media.flatten(1).mean(1).float(), torch.zeros(len(media), dtype=torch.bool))


@pytest.fixture
def make() -> Iterator[Callable[..., Scorer]]:
    made: list[Scorer] = []

    def make_scorer(**models: RewardModel) -> Scorer:
        made.append(Scorer([Reward(label, 1.0, model) for label, model in models.items()]))
        return made[-1]

    yield make_scorer
    for scorer in made:
        scorer.close()


MEDIA, PROMPTS = torch.full((2, 3, 4, 4), 0.5), [Prompt("a"), Prompt("b")]


def test_a_reward_that_changes_the_process_is_no_longer_worked_beside(
    make: Callable[..., Scorer], caplog: pytest.LogCaptureFixture
) -> None:
    """From the second micro-batch on `submit` waits for it: nothing is drawn while the default dtype is another."""
    here, finished = process_snapshot(), []

    def act() -> None:
        torch.set_default_dtype(torch.float64)
        os.chdir("/")
        threading.Event().wait(0.02)
        finished.append(1)

    scorer = make(lamp=Acting(act))
    scorer.submit(MEDIA, PROMPTS)
    scorer.collect()
    for turn in range(2, 5):
        scorer.submit(MEDIA, PROMPTS)
        assert len(finished) == turn
        assert process_snapshot() == here
    assert scorer.collect().values["lamp"].tolist() == [0.5] * 6
    assert len(warned(caplog)) == 1


def test_an_innocent_reward_stays_beside_the_run(make: Callable[..., Scorer]) -> None:
    go = threading.Event()
    scorer = make(lamp=Acting(lambda: go.wait(LONG)))
    for _ in range(3):
        scorer.submit(MEDIA, PROMPTS)  # does not wait
    go.set()
    scorer.collect()
    assert not scorer.process_state.disturbs("reward lamp")


def test_what_one_changes_for_a_moment_is_not_taken_away_from_it(
    make: Callable[..., Scorer], caplog: pytest.LogCaptureFixture
) -> None:
    """`quick` ends while `careful` has another default dtype for the time of its call."""
    inside, done, seen = threading.Event(), threading.Event(), []

    def careful() -> None:
        torch.set_default_dtype(torch.float64)
        inside.set()
        assert done.wait(LONG)
        seen.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)

    def quick() -> None:
        assert inside.wait(LONG)

    scorer = make(careful=Acting(careful), quick=Acting(quick))
    scorer.submit(MEDIA, PROMPTS)
    next(iter(scorer._pending)).scores["quick"].result(LONG)
    done.set()
    scorer.collect()
    assert seen == [torch.float64]
    assert warned(caplog) == []


def test_of_several_the_guilty_one_is_found(make: Callable[..., Scorer], caplog: pytest.LogCaptureFixture) -> None:
    """At first both were at work; then each is looked at alone."""
    both = threading.Barrier(2)
    first = [True, True]

    def meet(number: int) -> None:
        if first[number]:
            first[number] = False
            both.wait(LONG)

    def bad() -> None:
        meet(0)
        os.chdir("/")

    def late() -> None:
        meet(1)
        threading.Event().wait(0.05)  # so that the other one ends first

    here = os.getcwd()
    scorer = make(bad=Acting(bad), late=Acting(late))
    scorer.submit(MEDIA, PROMPTS)
    scorer.collect()
    assert os.getcwd() == here
    assert scorer.process_state.disturbs("reward bad")
    for _ in range(2):
        scorer.submit(MEDIA, PROMPTS)
        assert os.getcwd() == here
    scorer.collect()
    assert not scorer.process_state.disturbs("reward late")
    assert [line.split(" changed")[0] for line in warned(caplog)][-1] == "reward bad"


def test_a_call_that_was_left_behind_changes_nothing_later(make: Callable[..., Scorer]) -> None:
    """A reward that hangs outlives its run; what it finds changed by then is none of its business."""
    started, go = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        assert go.wait(LONG)

    scorer = Scorer([Reward("lamp", 1.0, Acting(hang))])
    scorer.submit(MEDIA, PROMPTS)
    assert started.wait(LONG)
    (thread,) = [t for executor in scorer._executors.values() for t in executor._threads]
    scorer.discard()
    scorer.process_state.close()
    torch.set_default_dtype(torch.float64)
    try:
        go.set()
        scorer.close()
        thread.join(LONG)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_suspicion_may_be_lifted_by_two_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were at work when it arose, and both have looked before either takes it away."""

    class BothLooked(dict[str, bool]):
        def get(self, key: str, default: Any = None) -> Any:
            return False

    process_state = ProcessState()
    monkeypatch.setattr(process_state, "_suspected", BothLooked(lamp=False))
    for _ in range(2):
        with process_state.around("lamp"):
            pass
        assert not process_state.disturbs("lamp")


# -- a whole run ----------------------------------------------------------------------------------------------------


class Rude(BrightnessReward):
    """Does everything at every opportunity."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        self.act()

    @staticmethod
    def act() -> None:
        for name, deed in DEEDS.items():
            if name != "the signal handlers" or threading.current_thread() is threading.main_thread():
                deed()

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        self.act()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        found = super().score(media, prompts)
        self.act()
        return found


class Plugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("rude", "Brightness, rudely", f"{__name__}:Rude", BrightnessOptions)]


def test_a_run_with_a_reward_that_does_all_of_it_is_the_same_run(
    registry: Registry, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its files lie where they are to lie, although their path is relative, with the same bytes."""
    monkeypatch.chdir(tmp_path)
    registry.register(Plugin(), distribution="rude")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as the run sets them
    said = {}
    for name in ("brightness", "rude"):
        rewards = [{"use": name, "name": "brightness"}]
        config = make_config(run={"name": name, "output": "runs", "iterations": 2}, rewards=rewards)
        before = process_snapshot() | thread_snapshot()
        assert Trainer(config, registry).train() == "finished"
        assert changes(before, process_snapshot() | thread_snapshot()) == []
        path = tmp_path / "runs" / name
        assert path == run_path(config).resolve()
        said[name] = {
            file.relative_to(path): file.read_bytes()
            for file in [path / "metrics.jsonl", *(path / "checkpoints" / "000002").glob("*.safetensors")]
        }
        assert len(said[name]) > 2
    assert said["rude"] == said["brightness"]
    lines = warned(caplog)
    assert any(line.startswith("reward brightness, when it was made, changed") for line in lines)
    assert any(line.startswith("reward brightness, when it checked the prompts, changed") for line in lines)
    assert any(line.startswith("reward brightness changed") for line in lines)
    assert len(lines) <= 4, "each is told of once"
