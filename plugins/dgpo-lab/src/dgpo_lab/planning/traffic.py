"""The communication of a plan on a cluster of one kind of GPU, as lines of text and as JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_lab.planning.communication import Cluster, Communication, communicate

if TYPE_CHECKING:
    from dgpo_lab.planning.plan import Plan

__all__ = ["LINKS", "check_machines", "data_of", "iteration_seconds", "lines_of", "traffic"]

LINKS = {
    "b200": 900, "h200": 450, "h100": 450,  # NVLink 5 and 4, NVIDIA's data sheets: half of both directions together
    "a100-80": 300, "a100-40": 300,  # NVLink 3
    "l40s": 32, "a10g": 32, "rtx4090": 32, "rtx3090": 32, "rtx4080": 32,  # PCIe 4.0 x16
    "t4": 16,  # PCIe 3.0 x16
}  # fmt: skip
"""GB/s that a GPU sends to others of its machine."""
GIGA = 1e9


def check_machines(processes: int, machines: int, shard: object) -> None:
    """Raise UserError unless the processes can be on so many machines."""
    if processes % machines:
        nearest = max(machines, round(processes / machines) * machines)
        raise UserError(
            f"--machines: {processes} processes are not divisible by {machines} machines; the nearest is "
            f"--processes {nearest}"
        )
    if shard == "machine" and processes > 1 and processes == machines:
        raise UserError(
            "--machines: run.shard: machine needs several processes per machine; use fewer machines, or run.shard: true"
        )


def traffic(plan: Plan, card: str, seconds: Mapping[str, float], within: float | None, between: float) -> Communication:
    """Return the communication of an iteration.

    seconds: of each GPU by phase, for its mean number of samples; within, between: GB/s, see `Cluster`.
    """
    cluster = Cluster(plan.processes, plan.machines, (within or LINKS.get(card, 32)) * GIGA, between * GIGA)
    units = sum(exchange.phase == "rollout" and exchange.kind == "all_gather" for exchange in plan.exchanges)
    computing = {phase: value / plan.balance for phase, value in seconds.items()}
    return communicate(cluster, plan.exchanges, computing, plan.balance, first=1 / max(units, 1))


def iteration_seconds(found: Communication, seconds: Mapping[str, float]) -> float:
    """Return the seconds of an iteration of the GPU with most samples, with the communication that is not hidden."""
    return sum(seconds.values()) / found.balance + sum(found.exposed.values())


def data_of(found: Communication, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return JSON data: bytes and numbers of collectives by name, seconds."""
    computing = sum(seconds.values())
    return {
        "within_bytes_per_second": found.cluster.within,
        "between_bytes_per_second": found.cluster.between,
        "exchanges": {
            name: {
                "collectives": count,
                "bytes": size,
                "seconds": found.totals[name],
                "exposed_seconds": found.exposed.get(name, 0.0),
            }
            for name, (count, size) in _by_name(found).items()
        },
        "exposed_seconds": sum(found.exposed.values()),
        "balance": found.balance,
        "efficiency": found.efficiency(computing),
    }


def lines_of(found: Communication, seconds: Mapping[str, float]) -> list[str]:
    """Describe the communication of an iteration, in at most 80 columns."""
    cluster = found.cluster
    machines = f"{cluster.machines} machine{'s' * (cluster.machines > 1)}"
    speed = f"{cluster.within / GIGA:g} GB/s within"
    speed += f", {cluster.between / GIGA:g} GB/s between" if cluster.machines > 1 else ""
    lines = ["", f"communication per iteration: {machines}, {speed}"]
    lines.append(f"  {'':<35} {'number':>8} {'GB':>10} {'seconds':>9} {'exposed':>9}")
    for name, (count, size) in _by_name(found).items():
        total, exposed = found.totals[name], found.exposed.get(name, 0.0)
        lines.append(f"  {name:<35} {count:>8.0f} {size / GIGA:>10.4f} {total:>9.3f} {exposed:>9.3f}")
    computing = sum(seconds.values())
    lines += [
        f"Computing takes {found.efficiency(computing):.1%} of an iteration; the GPU with most samples has",
        f"{1 / found.balance:.2f} times the mean. Exposed: not hidden by computing. GPUs with few samples",
        "compute less efficiently, which is not counted.",
    ]
    return lines


def _by_name(found: Communication) -> dict[str, tuple[float, float]]:
    """Return the number of collectives and their bytes by name."""
    made: dict[str, tuple[float, float]] = {}
    for exchange in found.exchanges:
        count, size = made.get(exchange.name, (0.0, 0.0))
        made[exchange.name] = count + exchange.count, size + exchange.count * exchange.size
    return made
