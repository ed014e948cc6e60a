"""The processes of a run: who they are, what they tell each other. Collectives are in this package alone.

Every process computes the whole of what is small (advantages, weights, records) from what all of them have scored, so
what a run decides is decided by all of them alike; samples, gradients and the model's work are shared.

Values that are not tensors travel as JSON: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dgpo_core.errors import ProcessLostError, UserError
from dgpo_core.system.stopping import Interrupted

__all__ = ["Processes", "cut", "in_order", "split_samples"]

P = ParamSpec("P")
T = TypeVar("T")


def cut(total: int, rank: int, count: int) -> range:
    """The part of `total` things that falls to process `rank` of `count`: parts in order, sizes that differ by one at
    most."""
    return range(total * rank // count, total * (rank + 1) // count)


def split_samples(groups: int, members: int, updates: int, count: int) -> list[list[int]]:
    """For each of `count` processes the samples that it draws and trains on, as numbers of the flat, group-major order.

    Every update's groups are cut by themselves, so that all processes have something to do in every update. Groups stay
    whole where the cut allows it; the at most `count - 1` others of an update are split, because a process that
    waits costs more than a second look at a few samples (`training.accumulation`).
    """
    size = groups // updates * members
    return [[update * size + i for update in range(updates) for i in cut(size, rank, count)] for rank in range(count)]


def in_order(parts: Sequence[T], samples: Sequence[Sequence[int]]) -> list[T]:
    """What came process by process, one of each sample, `samples` their numbers, in the order of these."""
    flat = [i for part in samples for i in part]
    return [part for _, part in sorted(zip(flat, parts, strict=True), key=lambda pair: pair[0])]


class Processes:
    """This process among the `count` of its run; rank 0 is the main one, which alone writes and talks.

    One process needs no group: every method then returns what it was given. Raises ProcessLostError wherever another
    process has to be waited for and is gone, or does not come within the timeout.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self.lost = False
        self._host: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @staticmethod
    def join(*, cpu: bool, timeout: float) -> Processes:
        """Meet the other processes that torchrun, accelerate or `dgpo train --processes` has started.

        cpu: compute on the CPU, through gloo; else each process takes the card of its local rank, through NCCL.
        timeout: seconds to wait for another process anywhere. Raises UserError if there are fewer cards than
        processes on this machine, or if the others cannot be met.
        """
        _refuse_a_launcher_that_started_one_process()
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes()
        if not cpu:
            _take_card(int(os.environ.get("LOCAL_RANK", "0")))
        from accelerate import PartialState

        within = timedelta(seconds=timeout)
        try:
            PartialState(cpu=cpu, timeout=within)
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            raise UserError(f"the {os.environ['WORLD_SIZE']} processes of this run cannot meet at {where}: "
                            f"{_first_line(error)}") from error  # fmt: skip
        made = Processes(dist.get_rank(), dist.get_world_size())
        made._host = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=within))
        return made

    # -- small things, on the host ------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.all_reduce_min(int(not flag)) == 0

    def all_reduce_min(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor([number])
        self._with_others(dist.all_reduce, found, dist.ReduceOp.MIN, group=self._host)
        return int(found)

    def all_gather_object(self, value: T) -> list[T]:
        """A JSON-able value of every process, in the order of ranks."""
        if self.count == 1:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        self._with_others(dist.all_gather, sizes, torch.tensor([len(mine)]), group=self._host)
        parts = [torch.zeros(max(int(s) for s in sizes), dtype=torch.uint8) for _ in sizes]
        padded = torch.zeros_like(parts[0])
        padded[: len(mine)] = mine
        self._with_others(dist.all_gather, parts, padded, group=self._host)
        return [json.loads(bytes(part[: int(size)].numpy())) for part, size in zip(parts, sizes, strict=True)]

    def broadcast_object(self, value: T) -> T:
        """The main process's JSON-able value, whatever it is in the others."""
        return value if self.count == 1 else self.all_gather_object(value if self.main else cast(T, None))[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """The main process's tensors by name, one after the other, on the CPU; the others give None."""
        tensors = tensors or {}
        kinds: list[Any] = self.broadcast_object([[name, list(t.shape), _name(t.dtype)] for name, t in tensors.items()])
        for name, shape, dtype in kinds:
            if self.main:
                tensor = tensors[name].detach().cpu().contiguous()
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if self.count > 1:
                self._with_others(dist.broadcast, tensor, 0, group=self._host)
            yield name, tensor

    @contextmanager
    def together(self, finish: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Work that one process may be asked to stop in: then all of them raise Interrupted at its end.

        finish: called before that, also of work that was stopped: for what else all have to do together.
        """
        asked: Interrupted | None = None
        try:
            yield
        except Interrupted as interrupted:
            asked = interrupted
        finish()
        if self.any(asked is not None):
            raise asked or Interrupted

    def barrier(self) -> None:
        """Until all processes have come here."""
        self.any(False)

    # -- tensors, on the device ---------------------------------------------------------------------------------

    def all_gather_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of every process, one process's after the other's, on this process's device: any number of them,
        of any shapes and one dtype."""
        if self.count == 1:
            return list(tensors)
        mine: list[Any] = [[list(t.shape), _name(t.dtype), t.device.type] for t in tensors]
        said = self.all_gather_object(mine)
        kinds = [kind for theirs in said for kind in theirs]
        if not kinds:
            return []
        _, dtype, where = kinds[0]
        device = tensors[0].device if tensors else torch.device(where)
        longest = max(math.prod(shape) for shape, *_ in kinds)
        padded = torch.zeros(max(map(len, said)), longest, dtype=getattr(torch, dtype), device=device)
        for row, tensor in zip(padded, tensors, strict=False):
            row[: tensor.numel()] = tensor.flatten()
        parts = [torch.empty_like(padded) for _ in said]
        self._with_others(dist.all_gather, parts, padded, group=self._host if where == "cpu" else dist.group.WORLD)
        return [
            row[: math.prod(shape)].view(shape)
            for part, theirs in zip(parts, said, strict=True)
            for row, (shape, *_) in zip(part, theirs, strict=False)
        ]

    def send(self, tensor: Tensor, rank: int) -> None:
        """Give a tensor to one process, which calls `receive` for it; exact to the bit, through the CPU."""
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._with_others(dist.send, data, rank, group=self._host)

    def receive(self, rank: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What process `rank` sends, on the CPU."""
        made = torch.empty(*shape, dtype=dtype)
        self._with_others(dist.recv, made.flatten().view(torch.uint8), rank, group=self._host)
        return made

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes of tensors of one dtype and device, in a single reduction."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        self._with_others(dist.all_reduce, flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Work in which others' code exchanges tensors: a backend's errors become ProcessLostError, others stay."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|ProcessGroup", str(error)):
                raise self._loss(error) from error
            raise

    def leave(self) -> None:
        """Part from the others. After a loss the group is left as it is: nobody would answer."""
        if self._host is not None and not self.lost:
            self._host = None
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _with_others(self, call: Callable[P, object], *arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            call(*arguments, **keywords)
        except RuntimeError as error:  # whatever a backend says of a peer that is gone or late
            raise self._loss(error) from error

    def _loss(self, error: RuntimeError) -> ProcessLostError:
        self.lost = True
        return ProcessLostError(
            f"process {self.rank} of {self.count} timed out waiting for another process: {_first_line(error)}"
        )


def _take_card(local_rank: int) -> None:
    there = torch.cuda.device_count()
    if local_rank >= there:
        raise UserError(
            f"process {local_rank} of this machine has no card of its own: torch sees {there}; start at most {there} "
            "processes, or set run.device: cpu"
        )
    torch.cuda.set_device(local_rank)


def _refuse_a_launcher_that_started_one_process() -> None:
    """`accelerate launch --cpu --num_processes 2` runs one process and says nothing; nor does it say so to us."""
    if "WORLD_SIZE" in os.environ or not any(name.startswith("ACCELERATE_") for name in os.environ):
        return
    import psutil

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return
    found = re.search(r"--num[_-]processes[ =](\d+)", " ".join(words))
    asked = int(found[1]) if found else 1
    if asked > 1:
        raise UserError(
            f"accelerate launch was asked for {asked} processes and has started one (on CPUs it does); start them with "
            f"`dgpo train --processes {asked}` or `torchrun --nproc-per-node {asked} -m dgpo_cli train`"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    """The first sentence of a backend's message, without the place in its sources."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:300]
