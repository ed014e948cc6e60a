"""Forward passes of a sharded network, which all ranks must run together in an agreed order.

Ranks have different samples and may have different numbers of micro-batches. At the start of a phase (a rollout,
statistics, a gradient, an evaluation) each rank announces the passes that it will run. All ranks merge these lists into
the same order, and a rank runs a dummy pass wherever the scheduled pass is not its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import PluginError

if TYPE_CHECKING:
    from dgpo_core.distributed.processes import Processes

__all__ = ["Pass", "PassSchedule", "merged"]

Pass = Literal["base", "start", "reset", "ema_fast", "ema", "policy", "gradient"]
"""A forward pass of a model without gradient, or ("gradient") one of the policy followed by a backward pass."""
ORDER: Sequence[Pass] = ("base", "start", "reset", "ema_fast", "ema", "policy", "gradient")
"""Priority where ranks have different next passes. The gradient pass is last, so that no rank has another model active
when it must run a backward pass."""
STRIDE = 16
"""Number of passes between checks whether any rank has passes left; all ranks may have been asked to stop."""


def merged(passes: Sequence[Sequence[Pass]]) -> list[Pass]:
    """Merge the passes of all ranks into one order that preserves each rank's order; equal next passes become one."""
    queues = [deque(local) for local in passes]
    order = []
    while heads := [queue[0] for queue in queues if queue]:
        turn = min(heads, key=ORDER.index)
        order.append(turn)
        for queue in queues:
            if queue and queue[0] == turn:
                queue.popleft()
    return order


class PassSchedule:
    """The remaining passes of the current phase. Outside of a phase all ranks run the same passes."""

    def __init__(self, processes: Processes, blank: Callable[[Pass], None]) -> None:
        """blank: runs a pass on a dummy sample that does not affect the results."""
        self._processes = processes
        self._blank = blank
        self._left: deque[Pass] | None = None

    def agree(self, passes: Sequence[Pass]) -> None:
        """Begin a phase in which this rank runs `passes`; all ranks must call this together."""
        assert self._left is None, "the previous phase must be finished first"
        self._left = deque(merged(self._processes.all_gather_object(list(passes))))

    def take(self, kind: Pass) -> None:
        """Run dummy passes until a pass of this kind is due, which the caller then runs.

        Raises PluginError if this rank runs more passes than it announced.
        """
        if self._left is None:
            return
        while (turn := self._next(done=False)) != kind:
            if turn is None:
                raise PluginError(
                    "run.shard: the sampler makes more forward passes than in its trial run; for a sharded model the "
                    "number of passes must not depend on the samples"
                )
            self._blank(turn)

    @property
    def last_gradient(self) -> bool:
        """Whether no pass with gradient is scheduled after the one that was taken last."""
        return self._left is None or "gradient" not in self._left

    def finish(self) -> None:
        """End the phase, if any: run dummy passes for what other ranks have left of it."""
        while (turn := self._next(done=True)) is not None:
            self._blank(turn)
        self._left = None

    def _next(self, *, done: bool) -> Pass | None:
        """done: whether this rank has no more passes of its own."""
        if self._left and len(self._left) % STRIDE == 0 and self._processes.all_reduce_min(int(done)):
            self._left.clear()
        return self._left.popleft() if self._left else None
