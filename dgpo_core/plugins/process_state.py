"""Restore the state of the process and its threads after calls of plugins.

A reward that calls `os.chdir`, `torch.set_default_dtype` or `torch.set_num_threads` would redirect the run's files or
change its results. Thread state is compared before and after each call. Process state is compared when a call ends; if
other calls are running, which can change it temporarily, the comparison waits for the last of them. All calls that
overlapped a change are suspects until one has been observed alone.

Not restored: global random states (every draw of a run has its own key, and contracts forbid plugins to use them),
environment variables and warning filters, which libraries set legitimately and results do not depend on.
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
from dgpo_core.system.portable import EARLY, HANGUP

__all__ = ["ProcessState", "changes", "process_snapshot", "put_back", "thread_snapshot"]

log = logging.getLogger(__name__)
State = Mapping[str, Any]
DEVICES = ("cpu", "cuda", "mps")
KERNELS = ("flash", "mem_efficient", "math", "cudnn")
THREADS = "torch's threads"
SIGNALS = tuple(one for one in (signal.SIGINT, signal.SIGTERM, HANGUP, EARLY) if one is not None)


def process_snapshot() -> dict[str, Any]:
    """Return the state of the process, by name. Takes about 10 microseconds."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        **{name: _or_none(read) for name, read in isolation.READ.items()},
        "torch's default dtype": torch.get_default_dtype(),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        ),
        "torch's float32 matmul precision": _or_none(_precision),
        "cudnn's flags": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "torch's attention kernels": tuple(getattr(cuda, f"{name}_sdp_enabled")() for name in KERNELS),
    }  # fmt: skip


def thread_snapshot() -> dict[str, Any]:
    """Return the state of this thread, by name; includes signal handlers in the main thread."""
    state: dict[str, Any] = {
        "torch's default device": torch.get_default_device(),
        "torch's grad mode": torch.is_grad_enabled(),
        THREADS: torch.get_num_threads(),
        "autocast": tuple((torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in DEVICES),
    }
    if threading.current_thread() is threading.main_thread():
        state["the signal handlers"] = tuple(signal.getsignal(number) for number in SIGNALS)
    return state


def _or_none(read: Callable[[], Any]) -> Any:
    """Return None for state that cannot be read: a removed directory, or contradicting flags of two torch APIs."""
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
        if handler is not None:  # None: not installed from Python, cannot be restored
            signal.signal(number, handler)


RESTORE: Mapping[str, Callable[[Any], object]] = {
    **isolation.RESTORE,
    "torch's default dtype": torch.set_default_dtype,
    "torch's deterministic algorithms": lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    "torch's float32 matmul precision": _set_precision,
    "cudnn's flags": _set_cudnn,
    "torch's attention kernels": _set_kernels,
    # None also means the CPU; setting "cpu" explicitly would slow down every torch call.
    "torch's default device": lambda v: torch.set_default_device(None if v == torch.device("cpu") else v),
    "torch's grad mode": torch.set_grad_enabled,
    THREADS: torch.set_num_threads,
    "autocast": _set_autocast,
    "the signal handlers": _set_signals,
}


def changes(before: State, after: State) -> list[str]:
    """Return the names of states that differ."""
    return [name for name, value in before.items() if after[name] != value]


def put_back(before: State, names: list[str]) -> None:
    """Restore the named states."""
    for name in names:
        if before[name] is not None:
            with suppress(OSError, RuntimeError, ValueError, locale.Error):
                RESTORE[name](before[name])


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    process_state: ProcessState
    label: str


class _Watch:
    """All running calls of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[_Call] = set()
        self.suspects: set[_Call] = set()
        self.expected: State = {}

    def begin(self, call: _Call) -> None:
        """Register a call. If no other call is running, the current state is the expected one."""
        with self.lock:
            if not self.running:
                self.suspects.clear()
                self.expected = process_snapshot()
            self.running.add(call)
            self.suspects.add(call)

    def end(self, call: _Call, *, known: bool) -> tuple[list[str], list[_Call]]:
        """Unregister a call; return the names of restored states, and the calls that may have changed them.

        known: whether calls of this plugin are known to change process state.
        """
        with self.lock:
            if call not in self.running:  # removed by `forget`
                return [], []
            self.running.remove(call)
            changed = changes(self.expected, process_snapshot())
            if not changed:
                self.suspects.discard(call)
                return [], []
            if self.running and not known:
                return [], []
            put_back(self.expected, changed)
            return changed, [call] if known else list(self.suspects)

    def forget(self, process_state: ProcessState) -> None:
        """Stop tracking the calls of an owner; they can end after the process state has moved on."""
        with self.lock:
            for calls in (self.running, self.suspects):
                calls.difference_update([call for call in calls if call.process_state is process_state])


_WATCH = _Watch()


class ProcessState:
    """Restores process and thread state around calls of plugins, and logs each plugin that changes it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._one_at_a_time = threading.RLock()
        self._suspected: dict[str, bool] = {}  # label -> True if known, False if only suspected
        self._reported: set[tuple[str, str]] = set()

    def disturbs(self, label: str) -> bool:
        """Whether calls of `label` change or may change shared state, so that nothing must run concurrently."""
        return label in self._suspected

    @contextmanager
    def around(self, label: str) -> Iterator[None]:
        """Restore state around a call. `label` names the plugin in messages, such as "reward ocr"."""
        with self._one_at_a_time if label in self._suspected else nullcontext():
            before, call = thread_snapshot(), _Call(self, label)
            _WATCH.begin(call)
            try:
                yield
            finally:
                shared, suspects = _WATCH.end(call, known=self._suspected.get(label, False))
                changed = changes(before, thread_snapshot())
                put_back(before, changed)
                self._judge(call, changed, shared, suspects)

    def _judge(self, call: _Call, changed: list[str], shared: list[str], suspects: list[_Call]) -> None:
        """Update and report suspects after a call.

        changed: thread states that the call changed; shared: process states that one of `suspects` changed.
        """
        known = self._suspected.get(call.label)
        if suspects == [call] or THREADS in changed:  # the number of threads also affects other threads
            self._suspected[call.label] = True
        elif known is False and not shared:
            self._suspected.pop(call.label, None)  # a concurrent call may already have removed it
        if suspects == [call] or not shared:
            self._report([call.label], [*changed, *shared])
            return
        self._report([call.label], changed)
        for process_state in {suspect.process_state for suspect in suspects}:
            labels = sorted({suspect.label for suspect in suspects if suspect.process_state is process_state})
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
                "%s changed %s, which it shares with the run. The state is restored after each call; fix the plugin to "
                "restore it, or run it in a worker",
                who, listed,
            )  # fmt: skip

    def close(self) -> None:
        """Stop tracking calls that are still running."""
        _WATCH.forget(self)
