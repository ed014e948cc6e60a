"""Media on a CUDA device are passed to rewards with events, on streams of their own, or as copies in host memory.

There is no device here: torch's streams and events are replaced by objects that record what is asked of them, and the
device's tensors by tensors that say that they are on it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import GroupReward, RewardModel
from dgpo_core.distributed.comparing import Layout
from dgpo_core.draws import Draws
from dgpo_core.training import handover, scoring
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt, SampleKey, Scores

CUDA = torch.device("cuda", 0)
PROMPTS = [Prompt("a red circle", source="first"), Prompt("two blue squares", source="second")]


class OnDevice(Tensor):
    """A tensor with values that says that it is on a CUDA device, as do all results of operations on it."""

    used_on: list[Any]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def record_stream(self, stream: Any) -> None:  # type: ignore[override]
        Events.log.append(("record_stream", tuple(self.shape), stream))

    def cpu(self) -> Tensor:  # type: ignore[override]
        Events.log.append(("cpu", threading.current_thread().name, Stream.current()))
        return self.as_subclass(Tensor)


class Events:
    log: list[tuple[Any, ...]] = []


class Stream:
    _of_thread = threading.local()

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.device, self.priority = device, priority

    def wait_event(self, event: Event) -> None:
        Events.log.append(("wait_event", self, event))

    @staticmethod
    def current(device: Any = None) -> Any:
        return getattr(Stream._of_thread, "stream", "the rollouts' stream")

    @staticmethod
    @contextmanager
    def active(stream: Stream) -> Iterator[None]:
        Stream._of_thread.stream = stream
        yield
        del Stream._of_thread.stream


class Event:
    def __init__(self, blocking: bool = False) -> None:
        self.recorded_on: Any = None

    def record(self, stream: Any) -> None:
        self.recorded_on = stream
        Events.log.append(("record", self, stream))

    def synchronize(self) -> None:
        Events.log.append(("synchronize", self, threading.current_thread().name))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    Events.log = []
    fakes = {"Stream": Stream, "Event": Event, "stream": Stream.active, "current_stream": Stream.current}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    empty_like = torch.empty_like

    def pinned(like: Tensor, *, device: Any = None, pin_memory: bool = False, **more: Any) -> Tensor:
        if pin_memory:
            assert device == "cpu"
            return empty_like(like.as_subclass(Tensor), **more)
        return empty_like(like, device=device, **more)

    monkeypatch.setattr(torch, "empty_like", pinned)
    monkeypatch.setattr(scoring, "to_device", lambda values, device: torch.tensor(values))

    def of_values(media: Tensor) -> dict[str, Tensor]:
        return media_statistics(media.as_subclass(Tensor))

    monkeypatch.setattr(scoring, "media_statistics", of_values)


class Brightness(RewardModel):
    range = (0.0, 1.0)

    def __init__(self, device: torch.device = CUDA, remote: bool = False) -> None:
        super().__init__(None, device=device)
        self.is_remote = remote  # type: ignore[misc]
        self.seen: list[tuple[type, str, Any]] = []

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.seen.append((type(media), threading.current_thread().name, Stream.current()))
        values = media.as_subclass(Tensor).flatten(1).mean(1)
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))


class Compared(GroupReward):
    range = (-1.0, 1.0)
    seen: list[Any]

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        self.seen = [type(media), Stream.current()]
        values = media.as_subclass(Tensor).flatten(1).mean(1)
        return Scores(values - values.mean(), torch.zeros(len(values), dtype=torch.bool))


def media(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=Draws(3).generator())


def logged(kind: str) -> list[tuple[Any, ...]]:
    return [entry[1:] for entry in Events.log if entry[0] == kind]


def scored(scorer: Scorer, given: Tensor) -> dict[str, list[float]]:
    scorer.submit(given, PROMPTS)
    try:
        return {label: values.tolist() for label, values in scorer.collect().values.items()}
    finally:
        scorer.close()


def test_a_reward_on_the_device_has_a_stream_of_its_own() -> None:
    model, given = Brightness(), media()
    scores = scored(Scorer([Reward("a", 1.0, model)]), given.as_subclass(OnDevice))
    assert scores == scored(Scorer([Reward("a", 1.0, Brightness())]), given)  # on the CPU, without streams
    ((kind, thread, stream),) = model.seen
    assert kind is OnDevice
    assert thread == "reward"
    assert (stream.device, stream.priority) == (CUDA, -1)
    (event, recorded_on), *_ = logged("record")
    assert recorded_on == "the rollouts' stream"
    assert logged("wait_event") == [(stream, event)]
    assert {on for _, on in logged("record_stream")} == {stream}
    assert (given.shape, stream) in logged("record_stream")
    names = [entry[0] for entry in Events.log]
    assert names.index("record") < names.index("wait_event") < names.index("record_stream") < names.index("cpu")
    assert all(on is stream for thread, on in logged("cpu") if thread == "reward")  # only its own stream is waited for


def test_each_thread_of_a_reward_has_one_stream() -> None:
    models = [Brightness(), Brightness()]
    scorer = Scorer([Reward("ab"[i], 1.0, model) for i, model in enumerate(models)])
    for _ in range(3):
        scorer.submit(media().as_subclass(OnDevice), PROMPTS)
    scorer.collect()
    scorer.close()
    streams = [{id(stream) for _, _, stream in model.seen} for model in models]
    assert [len(of_model) for of_model in streams] == [1, 1]
    assert streams[0].isdisjoint(streams[1])


@pytest.mark.parametrize("where", [{"remote": True}, {"device": torch.device("cpu")}])
def test_a_reward_elsewhere_gets_a_copy_in_pinned_memory(where: dict[str, Any]) -> None:
    models, given = [Brightness(**where), Brightness(**where)], media()
    rewards = [Reward("ab"[i], 1.0, model) for i, model in enumerate(models)]
    channels_last = given.contiguous(memory_format=torch.channels_last)
    scores = scored(Scorer(rewards), channels_last.as_subclass(OnDevice))
    assert scores["a"] == scores["b"] == given.flatten(1).mean(1).double().tolist()
    assert {kind for model in models for kind, _, _ in model.seen} == {Tensor}
    assert not logged("wait_event")
    copied = logged("record")
    assert len(copied) == 2  # the media and the flags of media that are not finite, once for both rewards
    waited = logged("synchronize")
    assert {event for event, _ in waited} == {event for event, _ in copied}
    assert {thread for _, thread in waited} == {"reward"}  # the rollout does not wait


def test_rows_of_one_source_are_handed_over_alone() -> None:
    model, given = Brightness(), media()
    reward = Reward("a", 1.0, model, sources=frozenset({"second"}))
    first, second = scored(Scorer([reward]), given.as_subclass(OnDevice))["a"]
    assert first != first
    assert second == pytest.approx(float(given[1].mean()))
    assert ((1, 3, 4, 4), model.seen[0][2]) in logged("record_stream")


def test_groups_are_handed_over_too() -> None:
    model = Compared(None, device=CUDA)
    scorer = Scorer([Reward("a", 1.0, model)])
    scorer.expect(Layout(2, Draws(0), [range(2)]))
    given = media()
    scorer.submit(given.as_subclass(OnDevice), [PROMPTS[0]] * 2, samples=range(2))
    values = scorer.collect().values["a"]
    scorer.close()
    assert float(values.sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(values[0]) == pytest.approx(float((given[0].mean() - given[1].mean()) / 2), abs=1e-6)
    kind, stream = model.seen
    assert kind is OnDevice
    assert stream.priority == -1
    assert logged("wait_event")[0][0] is stream


def test_nothing_changes_on_the_cpu() -> None:
    model, given = Brightness(torch.device("cpu")), media()
    scored(Scorer([Reward("a", 1.0, model)]), given)
    assert model.seen == [(Tensor, "reward", "the rollouts' stream")]
    assert not Events.log
    passed = handover.hand_over(given, on_host=True)
    with passed.taken() as (taken,):
        assert taken is given
