"""What the processes of a run exchange in an iteration, and how long that takes on a cluster.

Sizes and numbers of collectives follow from the run: tests compare them with those of real runs of several processes.
Times are closed forms of rings (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", 2005): a collective of n ranks takes n - 1 steps, or 2 (n - 1) for an all-reduce, each with a latency, and each
rank sends (n - 1) / n of the message in it, or twice as much.

Overlap: weights of a sharded model are gathered, and their gradients reduced, while another block is computing. Of
these, only what takes longer than computing is exposed, and the first block of each pass. So it is with the meetings
before these passes, which come while earlier passes are still queued. All else is exposed: gradients of adapters are
reduced once, after the last backward pass of an update, and the host waits for all ranks in its other meetings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Cluster", "Communication", "Exchange", "Kind", "Scope", "communicate"]

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "meeting", "host_gather"]
"""The last two are on the host, with gloo: an all-reduce of one number, and gathered JSON."""
Scope = Literal["all", "machine", "between"]
"""All ranks; those of one machine; or those of all machines that hold the same shard."""

WITHIN_LATENCY = 5e-6
"""Seconds of a step between GPUs of a machine."""
BETWEEN_LATENCY = 15e-6
"""Seconds of a step between machines, over InfiniBand or RoCE."""
HOST_LATENCY = 50e-6
"""Seconds of a step between processes on the host, over TCP."""
HOST_BANDWIDTH = 1e9
"""Bytes per second between processes on the host."""
REACHED = 0.8
"""Share of a link's bandwidth that long messages reach."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines with the same number of GPUs, one process each.

    within: bytes per second that a GPU sends to others of its machine, and receives at the same time; between: bytes
    per second that a machine sends to others, over all its ports.
    """

    processes: int
    machines: int
    within: float
    between: float

    @property
    def local(self) -> int:
        """Number of processes of a machine."""
        return self.processes // self.machines

    def all_reduce(self, size: float, scope: Scope = "all") -> float:
        """Return the seconds to sum a message of `size` bytes over ranks; over all of them, by the faster of a ring and
        a hierarchy."""
        if scope == "between":
            return self._between(size * self.local, 2)  # all shards of a machine at once
        if scope == "machine":
            return self._within(size, 2)
        return min(self.ring(size), self.hierarchy(size))

    def ring(self, size: float) -> float:
        """One ring of all ranks, whose slowest links are those between machines: 2 (n - 1) steps."""
        if self.machines == 1:
            return self._within(size, 2)
        n = self.processes
        slowest = min(self.within, self.between) * REACHED
        return 2 * (n - 1) * BETWEEN_LATENCY + 2 * (n - 1) / n * size / slowest

    def hierarchy(self, size: float) -> float:
        """A reduce-scatter within machines, an all-reduce of each part between machines, an all-gather within."""
        return self._within(size, 2) + self._between(size, 2)

    def all_gather(self, size: float, scope: Scope = "all") -> float:
        """Return the seconds to gather parts of `size` bytes in total on each rank. A reduce-scatter takes as long."""
        if scope == "machine" or self.machines == 1:
            return self._within(size, 1)
        n = self.processes
        slowest = min(self.within, self.between) * REACHED
        return (n - 1) * BETWEEN_LATENCY + (n - 1) / n * size / slowest

    def host(self, size: float) -> float:
        """Return the seconds of a meeting on the host: an all-reduce of one number, or a gather of the sizes and then
        of the JSON, both of 2 (n - 1) steps."""
        n = self.processes
        return 2 * (n - 1) * HOST_LATENCY + (n - 1) / n * size / HOST_BANDWIDTH

    def seconds(self, exchange: Exchange) -> float:
        """Return the seconds of one of an exchange's collectives."""
        if exchange.kind in ("meeting", "host_gather"):
            return self.host(exchange.size)
        time = self.all_reduce if exchange.kind == "all_reduce" else self.all_gather
        return time(exchange.size, exchange.scope)

    def _within(self, size: float, rounds: int) -> float:
        g = self.local
        return rounds * ((g - 1) * WITHIN_LATENCY + (g - 1) / g * size / (self.within * REACHED))

    def _between(self, size: float, rounds: int) -> float:
        m = self.machines
        return rounds * ((m - 1) * BETWEEN_LATENCY + (m - 1) / m * size / (self.between * REACHED))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Collectives of an iteration that are alike.

    size: bytes of the whole message: of the summed tensor, of all gathered parts together, or of what is scattered;
    count: how many there are in an iteration, fractions for what does not happen in each; phase: the phase whose
    computing hides them, or None.
    """

    name: str
    kind: Kind
    size: int
    count: float
    scope: Scope = "all"
    phase: str | None = None


@dataclass(frozen=True)
class Communication:
    """The exchanges of an iteration on a cluster, in seconds of each rank.

    totals: of each exchange by name; exposed: of all that computing does not hide, by name; balance: mean number of
    samples of a rank over the largest one.
    """

    cluster: Cluster
    exchanges: Sequence[Exchange]
    totals: Mapping[str, float] = field(default_factory=dict)
    exposed: Mapping[str, float] = field(default_factory=dict)
    balance: float = 1.0

    def efficiency(self, computing: float) -> float:
        """Return the share of an iteration that a rank computes for samples; computing: its mean seconds."""
        return computing / (computing / self.balance + sum(self.exposed.values()))


def communicate(
    cluster: Cluster, exchanges: Sequence[Exchange], computing: Mapping[str, float], balance: float, first: float = 0.0
) -> Communication:
    """Return the times of an iteration's exchanges.

    computing: seconds of each rank by phase; first: share of a hidden exchange that comes before any computing.
    """
    totals: dict[str, float] = {}
    hidden: dict[str, list[tuple[str, float]]] = {}
    exposed: dict[str, float] = {}
    for exchange in exchanges:
        seconds = exchange.count * cluster.seconds(exchange)
        totals[exchange.name] = totals.get(exchange.name, 0.0) + seconds
        if exchange.phase is None:
            exposed[exchange.name] = exposed.get(exchange.name, 0.0) + seconds
        else:
            hidden.setdefault(exchange.phase, []).append((exchange.name, seconds))
    for phase, parts in hidden.items():
        together = sum(seconds for _, seconds in parts)
        longer = max(together * first, together - computing.get(phase, 0.0))
        for name, seconds in parts:
            share = longer * seconds / together if together else 0.0
            exposed[name] = exposed.get(name, 0.0) + share
    return Communication(cluster, tuple(exchanges), totals, exposed, balance)
