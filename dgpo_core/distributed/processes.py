"""The process group of a run and its collectives. No other package calls torch.distributed.

Every rank computes small quantities (advantages, weights, records) from the scores of all ranks, so all ranks reach the
same decisions. Samples, gradients and model computation are split across ranks.

Objects are exchanged as JSON; nothing is unpickled.
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
from functools import cached_property
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dgpo_core.distributed.channels import Channel
from dgpo_core.errors import ProcessLostError, UserError
from dgpo_core.system.device import mps_is_available
from dgpo_core.system.out_of_memory import device_is_out_of_memory
from dgpo_core.system.stopping import Interrupted

__all__ = ["Processes", "cut", "in_order", "split_samples"]

P = ParamSpec("P")
T = TypeVar("T")


def cut(total: int, rank: int, count: int) -> range:
    """Return the contiguous range of `total` items that belongs to `rank` of `count`; sizes differ by at most one."""
    return range(total * rank // count, total * (rank + 1) // count)


def split_samples(groups: int, members: int, updates: int, count: int) -> list[list[int]]:
    """Split samples across `count` ranks: for each rank the samples that it draws and trains on, as flat, group-major
    numbers.

    Each update's groups are split separately, so that every rank works in every update. At most `count - 1` groups of
    an update are split across ranks, because an idle rank costs more than a second forward pass of a few samples
    (`training.accumulation`).
    """
    size = groups // updates * members
    return [[update * size + i for update in range(updates) for i in cut(size, rank, count)] for rank in range(count)]


def in_order(parts: Sequence[T], samples: Sequence[Sequence[int]]) -> list[T]:
    """Sort one value per sample, concatenated rank by rank, into sample order.

    samples: the sample numbers of each rank.
    """
    flat = [i for part in samples for i in part]
    return [part for _, part in sorted(zip(flat, parts, strict=True), key=lambda pair: pair[0])]


class Processes:
    """The processes of a run: this rank, the world size (`count`) and their collectives.

    Only rank 0, the main process, writes files and messages. With a single process there is no process group, and the
    collectives return their arguments. Collectives raise ProcessLostError if another process is gone or does not join
    within the timeout. Before collectives on GPUs, the ranks meet on the host, because NCCL would not raise.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self.lost = False
        self._host: dist.ProcessGroup | None = None
        self._device: torch.device | None = None  # of tensors that are reduced by NCCL
        self.gathers = False
        """Whether passes of the model gather its weights from other ranks."""
        self._within: timedelta | None = None

    @cached_property
    def channel(self) -> Channel:
        """Messages between two ranks; all ranks must first ask for it together.

        Raises ProcessLostError if one of them is gone: creating a group would wait for it as long as for a message.
        """
        self.barrier()
        return Channel()

    @property
    def main(self) -> bool:
        """Whether this is the main process, which alone writes."""
        return self.rank == 0

    @staticmethod
    def join(*, cpu: bool, timeout: float) -> Processes:
        """Join the process group that torchrun, accelerate or `dgpo train --processes` has started.

        cpu: compute on the CPU with the gloo backend; otherwise each process uses the GPU of its local rank with NCCL.
        timeout: seconds to wait for another process in any collective. Raises UserError if this machine has fewer GPUs
        than processes, or if the process group cannot be set up.
        """
        _check_launcher()
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes()
        if not cpu:
            _set_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        from accelerate import PartialState

        within = timedelta(seconds=timeout)
        try:
            PartialState(cpu=cpu, timeout=within)
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            raise UserError(f"the {os.environ['WORLD_SIZE']} processes of this run cannot connect at {where}: "
                            f"{_first_line(error)}") from error  # fmt: skip
        processes = Processes(dist.get_rank(), dist.get_world_size())
        processes._host = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=within))
        processes._device = None if cpu else torch.device("cuda", torch.cuda.current_device())
        processes._within = within
        return processes

    def ranks_per_machine(self) -> int:
        """Return the number of processes of each machine, as told by the launcher; all ranks must call this together.

        Raises UserError if `run.shard: machine` is not possible with them.
        """
        numbers = self.all_gather_object(int(os.environ.get("LOCAL_WORLD_SIZE", str(self.count))))
        if min(numbers) != max(numbers):
            raise UserError(
                f"run.shard: machine: every machine must have the same number of processes, not {min(numbers)} and "
                f"{max(numbers)}; use true, which shards over all processes"
            )
        if numbers[0] == 1:
            raise UserError(
                "run.shard: machine: every machine has one process, so that nothing would be sharded; use true, which "
                "shards over all processes, or false"
            )
        return numbers[0]

    def subgroup(self, partition: Sequence[Sequence[int]]) -> dist.ProcessGroup:
        """Create a process group for each part of the ranks, and return this rank's; all ranks must call this
        together."""
        groups = [(ranks, dist.new_group(list(ranks), timeout=self._within)) for ranks in partition]
        return cast(dist.ProcessGroup, next(group for ranks, group in groups if self.rank in ranks))

    # -- objects, on the host -----------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.all_reduce_min(int(not flag)) == 0

    def all_reduce_min(self, number: int) -> int:
        """Return the minimum of a number over all ranks."""
        if self.count == 1:
            return number
        minimum = torch.tensor([number])
        self._collective(dist.all_reduce, minimum, dist.ReduceOp.MIN, group=self._host)
        return int(minimum)

    def all_gather_object(self, value: T) -> list[T]:
        """Gather a JSON-serializable value from all ranks, in rank order."""
        if self.count == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        self._collective(dist.all_gather, sizes, torch.tensor([len(data)]), group=self._host)
        parts = [torch.zeros(max(int(s) for s in sizes), dtype=torch.uint8) for _ in sizes]
        padded = torch.zeros_like(parts[0])
        padded[: len(data)] = data
        self._collective(dist.all_gather, parts, padded, group=self._host)
        return [json.loads(bytes(part[: int(size)].numpy())) for part, size in zip(parts, sizes, strict=True)]

    def broadcast_object(self, value: T) -> T:
        """Broadcast a JSON-serializable value from the main process; the values of other ranks are ignored."""
        return value if self.count == 1 else self.all_gather_object(value if self.main else cast(T, None))[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """Broadcast named tensors from the main process, one at a time, on the CPU; other ranks pass None."""
        tensors = tensors or {}
        metadata: list[Any] = self.broadcast_object(
            [[name, list(t.shape), _name(t.dtype)] for name, t in tensors.items()]
        )
        for name, shape, dtype in metadata:
            if self.main:
                tensor = tensors[name].detach().cpu().contiguous()
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if self.count > 1:
                self._collective(dist.broadcast, tensor, 0, group=self._host)
            yield name, tensor

    @contextmanager
    def together(self, finish: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Context in which any rank may be interrupted; then all ranks raise Interrupted at its end.

        finish: called first on every rank, interrupted or not, for collective work that must be completed.
        """
        stopped: Interrupted | None = None
        try:
            yield
        except Interrupted as interrupted:
            stopped = interrupted
        finish()
        if self.any(stopped is not None):
            raise stopped or Interrupted

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        self.any(False)

    # -- tensors, on the device ---------------------------------------------------------------------------------

    def all_gather_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gather tensors from all ranks, in rank order, on this rank's device.

        Each rank may pass any number of tensors of any shapes; all have the same dtype.
        """
        if self.count == 1:
            return list(tensors)
        local: list[Any] = [[list(t.shape), _name(t.dtype), t.device.type] for t in tensors]
        metadata = self.all_gather_object(local)
        entries = [entry for of_rank in metadata for entry in of_rank]
        if not entries:
            return []
        _, dtype, device_type = entries[0]
        device = tensors[0].device if tensors else torch.device(device_type)
        longest = max(math.prod(shape) for shape, *_ in entries)
        padded = torch.zeros(max(map(len, metadata)), longest, dtype=getattr(torch, dtype), device=device)
        for row, tensor in zip(padded, tensors, strict=False):
            row[: tensor.numel()] = tensor.flatten()
        parts = [torch.empty_like(padded) for _ in metadata]
        group = self._host if device_type == "cpu" else dist.group.WORLD
        if device_type != "cpu":
            self._meet()
        self._collective(dist.all_gather, parts, padded, group=group)
        return [
            row[: math.prod(shape)].view(shape)
            for part, of_rank in zip(parts, metadata, strict=True)
            for row, (shape, *_) in zip(part, of_rank, strict=False)
        ]

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a tensor to `rank`, which calls `receive`; bit-exact, through the CPU."""
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._collective(dist.send, data, rank, group=self._host)

    def receive(self, rank: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Receive a tensor from `rank`, on the CPU."""
        tensor = torch.empty(*shape, dtype=dtype)
        self._collective(dist.recv, tensor.flatten().view(torch.uint8), rank, group=self._host)
        return tensor

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum tensors of one dtype and device over all ranks, in a single reduction."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        self._meet()
        self._collective(dist.all_reduce, flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Context for code outside this class that runs collectives: turn backend errors into ProcessLostError."""
        self._meet(finished=False)
        try:
            yield
        except RuntimeError as error:
            if device_is_out_of_memory(error):
                raise
            if isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|ProcessGroup", str(error)):
                raise self._loss(error) from error
            raise

    def leave(self) -> None:
        """Destroy the process group, unless a process was lost: the others would not respond."""
        if self._host is not None and not self.lost:
            self._host = None
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _meet(self, *, finished: bool = True) -> None:
        """Wait on the host until all ranks are about to run a collective on their GPUs; nothing without GPUs.

        NCCL does not raise if a rank is lost: its calls return at once, the host waits where it next reads a value, and
        after the timeout a watchdog ends the process, without a message and without a saved state. gloo raises.
        finished: first wait for this rank's own work, so that ranks meet just before their GPUs do; otherwise only the
        hosts meet, so that work stays queued. The work of a sharded model has collectives of its own (`gathers`), which
        never end if a rank is lost: the hosts then also meet before they wait.
        """
        if self._device is None or self.count == 1:
            return
        if finished and self.gathers:
            self.barrier()
        if finished:
            torch.cuda.synchronize(self._device)
        self.barrier()

    def _collective(self, call: Callable[P, object], *arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            call(*arguments, **keywords)
        except RuntimeError as error:  # backends report a lost or late peer with different messages
            if device_is_out_of_memory(error):
                raise
            raise self._loss(error) from error

    def _loss(self, error: RuntimeError) -> ProcessLostError:
        self.lost = True
        return ProcessLostError(
            f"process {self.rank} of {self.count} timed out waiting for another process: {_first_line(error)}"
        )


def _set_gpu(local_rank: int) -> None:
    available = torch.cuda.device_count()
    if not available and mps_is_available():
        raise UserError(
            "several processes cannot run on MPS, where torch has no collectives; start one process, or set "
            "run.device: cpu"
        )
    if local_rank >= available:
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own: torch sees {available}; start at most "
            f"{available} processes, or set run.device: cpu"
        )
    torch.cuda.set_device(local_rank)


def _check_launcher() -> None:
    """Raise UserError if accelerate was asked for several processes: `accelerate launch --cpu --num_processes 2` starts
    only one, without a warning."""
    if "WORLD_SIZE" in os.environ or not any(name.startswith("ACCELERATE_") for name in os.environ):
        return
    import psutil

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return
    match = re.search(r"--num[_-]processes[ =](\d+)", " ".join(words))
    requested = int(match[1]) if match else 1
    if requested > 1:
        raise UserError(
            f"accelerate launch was asked for {requested} processes but started only one, as it does on CPUs; use "
            f"`dgpo train --processes {requested}` or `torchrun --nproc-per-node {requested} -m dgpo_cli train`"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    """Return the first sentence of a backend's message, without its source location."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:300]
