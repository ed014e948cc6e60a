"""What plugins share with the run: the state of the process and of its threads. What a call leaves changed is put back.

A reward that calls `os.chdir`, `torch.set_default_dtype` or `torch.set_num_threads` means itself, but moves the run's
files, or its last bits. States that belong to a thread are compared before and after a call. Those of the whole process
are compared when a call ends; while others are at work beside it, which may have changed something for a moment, that
waits for the last of them, and all that were at work are suspects, until they have been seen alone.

Left alone: global random states (every draw of a run has its own key; a plugin's contract forbids it to touch them),
environment variables and filters of warnings, which libraries set for good reasons and no number of a run depends on.
"""

from __future__ import annotations

import locale
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from dgpo_core.plugins import isolation

__all__ = ["ProcessState", "changes", "process_snapshot", "put_back", "thread_snapshot"]

log = logging.getLogger(__name__)
State = Mapping[str, Any]
DEVICES = ("cpu", "cuda")
KERNELS = ("flash", "mem_efficient", "math", "cudnn")
THREADS = "torch's threads"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def process_snapshot() -> dict[str, Any]:
    """What the whole process has one of, by name. Costs some 10 microseconds."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        **{name: _or_none(read) for name, read in isolation.READ.items()},
        "torch's default dtype": torch.get_default_dtype(),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        ),
        "torch's precision of float32": _or_none(_precision),
        "cudnn's switches": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "torch's attention kernels": tuple(getattr(cuda, f"{name}_sdp_enabled")() for name in KERNELS),
    }  # fmt: skip


def thread_snapshot() -> dict[str, Any]:
    """What each thread has one of, by name; signals are the main thread's."""
    found: dict[str, Any] = {
        "torch's default device": torch.get_default_device(),
        "torch's gradients": torch.is_grad_enabled(),
        THREADS: torch.get_num_threads(),
        "autocast": tuple((torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in DEVICES),
    }
    if threading.current_thread() is threading.main_thread():
        found["the handlers of Ctrl-C and SIGTERM"] = tuple(signal.getsignal(number) for number in SIGNALS)
    return found


def _or_none(read: Callable[[], Any]) -> Any:
    """What cannot be read (a directory that is gone, flags of two interfaces that contradict each other) is None."""
    try:
        return read()
    except (OSError, RuntimeError, locale.Error):
        return None


def _precision() -> tuple[Any, ...]:
    backends = torch.backends
    return torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32


def _set_precision(value: tuple[Any, ...]) -> None:
    torch.set_float32_matmul_precision(value[0])
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = value[1:]


def _set_cudnn(value: tuple[bool, ...]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = value


def _set_kernels(value: tuple[bool, ...]) -> None:
    for name, on in zip(KERNELS, value, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(on)


def _set_autocast(value: tuple[tuple[bool, torch.dtype], ...]) -> None:
    for name, (enabled, dtype) in zip(DEVICES, value, strict=True):
        torch.set_autocast_enabled(name, enabled)
        torch.set_autocast_dtype(name, dtype)


def _set_signals(value: tuple[Any, ...]) -> None:
    for number, handler in zip(SIGNALS, value, strict=True):
        if handler is not None:  # else it was not Python's, and cannot be had back
            signal.signal(number, handler)


RESTORE: Mapping[str, Callable[[Any], object]] = {
    **isolation.RESTORE,
    "torch's default dtype": torch.set_default_dtype,
    "torch's deterministic algorithms": lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    "torch's precision of float32": _set_precision,
    "cudnn's switches": _set_cudnn,
    "torch's attention kernels": _set_kernels,
    # Without a choice it is the CPU; setting that would slow every call of torch down.
    "torch's default device": lambda v: torch.set_default_device(None if v == torch.device("cpu") else v),
    "torch's gradients": torch.set_grad_enabled,
    THREADS: torch.set_num_threads,
    "autocast": _set_autocast,
    "the handlers of Ctrl-C and SIGTERM": _set_signals,
}


def changes(before: State, after: State) -> list[str]:
    """Names of what differs."""
    return [name for name, value in before.items() if after[name] != value]


def put_back(before: State, names: list[str]) -> None:
    """Make what is named what it was."""
    for name in names:
        if before[name] is not None:
            with suppress(OSError, RuntimeError, ValueError, locale.Error):
                RESTORE[name](before[name])


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    process_state: ProcessState
    label: str


class _Watch:
    """The calls under way in this process, whoever made them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way: set[_Call] = set()
        self.suspects: set[_Call] = set()
        self.expected: State = {}

    def begin(self, call: _Call) -> None:
        """Before a call: alone at work it finds the state as it is to be."""
        with self.lock:
            if not self.under_way:
                self.suspects.clear()
                self.expected = process_snapshot()
            self.under_way.add(call)
            self.suspects.add(call)

    def end(self, call: _Call, *, known: bool) -> tuple[list[str], list[_Call]]:
        """After it: what is put back now, and whose doing it is: one of several calls, or this one; `known`: it has
        done so before."""
        with self.lock:
            if call not in self.under_way:  # it was given up
                return [], []
            self.under_way.remove(call)
            found = changes(self.expected, process_snapshot())
            if not found:
                self.suspects.discard(call)
                return [], []
            if self.under_way and not known:
                return [], []
            put_back(self.expected, found)
            return found, [call] if known else list(self.suspects)

    def forget(self, process_state: ProcessState) -> None:
        """What is still under way ends without being waited for: its process may have gone elsewhere by then."""
        with self.lock:
            for calls in (self.under_way, self.suspects):
                calls.difference_update([call for call in calls if call.process_state is process_state])


_WATCH = _Watch()


class ProcessState:
    """Surrounds calls of plugins. Whoever changes something is named once, in a warning."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._one_at_a_time = threading.RLock()
        self._suspected: dict[str, bool] = {}  # label, to whether it is known and not only suspected
        self._reported: set[tuple[str, str]] = set()

    def disturbs(self, label: str) -> bool:
        """Whether the calls of `label` change, or may change, what others share: nothing is to be done beside them."""
        return label in self._suspected

    @contextmanager
    def around(self, label: str) -> Iterator[None]:
        """Around a call. `label` names the plugin in messages, such as "reward ocr"."""
        with self._one_at_a_time if label in self._suspected else nullcontext():
            own, call = thread_snapshot(), _Call(self, label)
            _WATCH.begin(call)
            try:
                yield
            finally:
                shared, whose = _WATCH.end(call, known=self._suspected.get(label, False))
                found = changes(own, thread_snapshot())
                put_back(own, found)
                self._judge(call, found, shared, whose)

    def _judge(self, call: _Call, own: list[str], shared: list[str], whose: list[_Call]) -> None:
        """After a call that left `own` changed in its thread; `shared` was changed by one of the calls `whose`."""
        known = self._suspected.get(call.label)
        if whose == [call] or THREADS in own:  # the arithmetic libraries keep one number for the threads of all
            self._suspected[call.label] = True
        elif known is False and not shared:
            self._suspected.pop(call.label, None)  # another call of it may just have been judged
        if whose == [call] or not shared:
            self._report([call.label], [*own, *shared])
            return
        self._report([call.label], own)
        for process_state in {one.process_state for one in whose}:
            labels = sorted({one.label for one in whose if one.process_state is process_state})
            for label in labels:
                process_state._suspected.setdefault(label, False)
            process_state._report(labels, shared)

    def _report(self, labels: list[str], names: list[str]) -> None:
        who = " or ".join(labels)
        with self._lock:
            new = [name for name in names if (who, name) not in self._reported]
            self._reported.update((who, name) for name in new)
        if new:
            listed = " and ".join(filter(None, (", ".join(new[:-1]), new[-1])))
            log.warning(
                "%s has changed %s, which it shares with the run: that is put back after each call; let it put things "
                "back itself, or run it in a worker",
                who, listed,
            )  # fmt: skip

    def close(self) -> None:
        """Calls that are still under way are no longer looked after."""
        _WATCH.forget(self)
