"""Hand media over to the threads of rewards, which score while the next samples are drawn.

Kernels of one CUDA stream run in order. If rewards used the stream of the rollouts, each value that a reward reads on
the host would wait for all passes queued before it, and its kernels for those of a whole micro-batch. Here each thread
of a reward has a stream of its own, with high priority, since its kernels are few and others wait for its scores. It
starts after an event that is recorded when the media are handed over. Rewards that are not on the device (workers,
services) get copies in pinned host memory, so that queued media do not hold the device's memory.

On the CPU the tensors themselves are handed over. MPS has one stream, and torch's backend for it ends the process if
two threads use it at once (github.com/pytorch/pytorch/issues/197805): rewards on MPS score between the batches of a
rollout.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward
from dgpo_core.transfers import HostCopy

__all__ = ["Handover", "hand_over", "own_stream", "runs_between", "scores_on_host"]

HIGH = -1
"""Priority of the rewards' streams; 0 is the default, and lower numbers go first."""
_OF_THREAD = threading.local()


def scores_on_host(model: AnyReward, media: Tensor) -> bool:
    """Return whether a reward gets media from a GPU in host memory: it runs in another process, or on the CPU."""
    return media.device.type != "cpu" and (model.is_remote or model.device.type == "cpu")


def runs_between(model: AnyReward) -> bool:
    """Return whether a reward must not run beside the rollouts: it is on MPS, in this process."""
    return not model.is_remote and model.device.type == "mps"


def hand_over(*tensors: Tensor, on_host: bool) -> Handover:
    """Hand tensors of the current stream over to another thread; on_host: as copies in host memory."""
    if on_host:
        return _HostHandover(tensors)
    return _StreamHandover(tensors) if tensors[0].is_cuda else Handover(tensors)


class Handover:
    """Tensors for another thread."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    @contextmanager
    def taken(self) -> Iterator[tuple[Tensor, ...]]:
        """Context in which the other thread uses the tensors."""
        yield self._tensors


class _HostHandover(Handover):
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__(())
        self._copies = [HostCopy(tensor) for tensor in tensors]

    @contextmanager
    def taken(self) -> Iterator[tuple[Tensor, ...]]:
        yield tuple(copy.wait() for copy in self._copies)


class _StreamHandover(Handover):
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__(tensors)
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ready.record(torch.cuda.current_stream(tensors[0].device))

    @contextmanager
    def taken(self) -> Iterator[tuple[Tensor, ...]]:
        stream = _stream_of_thread(self._tensors[0].device)
        stream.wait_event(self._ready)
        for tensor in self._tensors:
            tensor.record_stream(stream)  # its memory is not reused before the reward's kernels are done
        with torch.cuda.stream(stream):
            yield self._tensors


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Context in which this thread's work on a CUDA device is queued on a stream of its own."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream_of_thread(device)):
        yield


def _stream_of_thread(device: torch.device) -> torch.cuda.Stream:
    """Return this thread's stream on a device."""
    streams: dict[torch.device, torch.cuda.Stream] = _OF_THREAD.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device, priority=HIGH)  # type: ignore[no-untyped-call]
    return streams[device]
