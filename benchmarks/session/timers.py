"""Time the parts of a training run on its own device: CUDA events around calls, read when the run has ended."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dgpo_core.training.callbacks import Callback
from dgpo_core.training.run import TrainingRun
from dgpo_schemas.metrics import MetricsRecord, TimingRecord

__all__ = ["Launched", "Timers"]


@dataclass(frozen=True)
class Launched:
    """A pass as the profiler saw it. kernels: launches; busy: seconds that any of them ran, one after the other; span:
    from the start of the first to the end of the last; host: seconds until the call returned."""

    kernels: int
    busy: float
    span: float
    host: float


class Timers(Callback):
    """Seconds of calls by label, of every iteration but the first: "sample" (all steps of a micro-batch), "step" (a
    solver step's pass), "fixed" (a training pass without a gradient), "policy" (one with), "backward", "decode"; and of
    the phases "rollout" and "optimize". profiled: the first roll-out pass of an iteration, if asked for."""

    def __init__(self, device: torch.device, *, profile: int | None = None) -> None:
        """profile: the iteration with the profiler, which slows all that it runs in, so that nothing of it is timed."""
        self.profiled: Launched | None = None
        self._device, self._profile = device, profile
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._phases: dict[str, list[float]] = defaultdict(list)
        self._phase = ""
        self._iteration = 0

    def watch(self, run: TrainingRun) -> None:
        """Time a run that was built and not started."""
        self._wrap(run.sampler, "sample", lambda: "sample")
        self._wrap(run.backbone, "velocity", self._kind)
        self._wrap(run.backbone, "decode_rollouts", lambda: "decode")
        self._wrap(run.policy, "backward", lambda: "backward")

    def seconds(self, label: str) -> float | None:
        """Return the median of a label; None without a call."""
        found = self._phases.get(label) or [self._between(*span) for span in self._spans.get(label, ())]
        return statistics.median(found) if found else None

    def count(self, label: str) -> int:
        """Return the number of timed calls."""
        return len(self._spans[label])

    def on_iteration_start(self, iteration: int) -> None:
        """The first iteration warms up."""
        self._iteration = iteration

    def on_phase_start(self, phase: str) -> None:
        """Passes belong to a phase."""
        self._phase = phase

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Keep the seconds of the phases."""
        for phase in ("rollout", "optimize") if self._timing else ():
            self._phases[phase].append(timing.phases[phase].seconds)

    @property
    def _timing(self) -> bool:
        return self._iteration not in (0, self._profile)

    def _kind(self) -> str:
        if self._phase == "rollout":
            return "step"
        return "policy" if torch.is_grad_enabled() else "fixed"

    def _wrap(self, owner: Any, name: str, kind: Callable[[], str]) -> None:
        call = getattr(owner, name)

        @functools.wraps(call)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            label = kind()
            if self._iteration == self._profile and label == "step" and self.profiled is None:
                return self._profiling(functools.partial(call, *arguments, **keywords))
            if not self._timing:
                return call(*arguments, **keywords)
            start = self._now()
            result = call(*arguments, **keywords)
            self._spans[label].append((start, self._now()))
            return result

        setattr(owner, name, timed)

    def _profiling(self, call: Callable[[], Any]) -> Any:
        from torch.profiler import ProfilerActivity, profile

        cuda = self._device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
            started = time.perf_counter()
            result = call()
            host = time.perf_counter() - started
            if cuda:
                torch.cuda.synchronize(self._device)
        events: Sequence[Any] = profiler.events() or ()
        kind = "CUDA" if cuda else "CPU"
        ran = [e.time_range for e in events if e.device_type.name == kind and not e.name.startswith("Mem")]
        span = max((r.end for r in ran), default=0) - min((r.start for r in ran), default=0)
        self.profiled = Launched(len(ran), _covered([(r.start, r.end) for r in ran]) / 1e6, span / 1e6, host)
        return result

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _covered(ranges: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
