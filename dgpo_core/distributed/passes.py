"""Passes of a network that all processes have to make together, in an order that they agree on before each phase.

Processes have different samples and may have different numbers of micro-batches. So each says at the beginning of a
phase (a rollout, statistics, a gradient, an evaluation) which passes it will make; from what all have said each finds
the same order, which has room for everyone's, and makes a blank pass wherever the pass is not one of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import PluginError

if TYPE_CHECKING:
    from dgpo_core.distributed.processes import Processes

__all__ = ["Pass", "PassSchedule", "merged"]

Pass = Literal["base", "ema_fast", "ema", "policy", "gradient"]
"""A pass without gradient of a view of the weights, or one of the policy that a backward pass follows."""
ORDER: Sequence[Pass] = ("base", "ema_fast", "ema", "policy", "gradient")
"""What comes first where processes have different passes to make. The pass with gradient is last, so that nobody is
within another view when a backward pass has to be made."""
STRIDE = 16
"""Passes between two looks at whether anybody has passes of its own left: all may have been asked to stop."""


def merged(passes: Sequence[Sequence[Pass]]) -> list[Pass]:
    """An order that has each process's passes, in their order: those that are next in several of them as one."""
    waiting = [deque(own) for own in passes]
    order = []
    while heads := [own[0] for own in waiting if own]:
        turn = min(heads, key=ORDER.index)
        order.append(turn)
        for own in waiting:
            if own and own[0] == turn:
                own.popleft()
    return order


class PassSchedule:
    """The passes of the phase that this process is in. Outside of a phase all processes make the same passes."""

    def __init__(self, processes: Processes, blank: Callable[[Pass], None]) -> None:
        """blank: makes a pass on a sample that counts for nothing."""
        self._processes = processes
        self._blank = blank
        self._left: deque[Pass] | None = None

    def agree(self, own: Sequence[Pass]) -> None:
        """Begin a phase in which this process makes the passes `own`; called by all processes together."""
        assert self._left is None, "a phase ends before the next one begins"
        self._left = deque(merged(self._processes.all_gather_object(list(own))))

    def take(self, kind: Pass) -> None:
        """Go along with others until it is the turn of a pass of this kind, which the caller makes.

        Raises PluginError if this process makes more passes than it has said.
        """
        if self._left is None:
            return
        while (turn := self._next(done=False)) != kind:
            if turn is None:
                raise PluginError(
                    "run.shard: there are more passes of the network than a trial of the sampler made; their number "
                    "must not depend on the samples where a model is sharded"
                )
            self._blank(turn)

    def finish(self) -> None:
        """End the phase, if there is one: go along with others for what is left of it."""
        while (turn := self._next(done=True)) is not None:
            self._blank(turn)
        self._left = None

    def _next(self, *, done: bool) -> Pass | None:
        """done: whether this process makes no more passes of its own."""
        if self._left and len(self._left) % STRIDE == 0 and self._processes.all_reduce_min(int(done)):
            self._left.clear()
        return self._left.popleft() if self._left else None
