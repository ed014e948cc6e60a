"""The device of a process of a run, its arithmetic and the trackers, through accelerate."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from dgpo_core.distributed.processes import Processes
from dgpo_core.errors import UserError
from dgpo_core.system.device import choose_device

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["Runtime"]

log = logging.getLogger(__name__)


class Runtime:
    """One process of a run: its device, its arithmetic and the trackers.

    directory: of a run that trains. join: with the processes that a launcher has started beside this one, as a run that
    trains always does (True), or without them (False); None: they are refused.
    """

    def __init__(self, config: RunConfig, directory: Path | None = None, *, join: bool | None = None) -> None:
        join = True if directory is not None else join
        if join is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "only `dgpo train`, `evaluate`, `sample`, `score` and `export` work with several processes: start this "
                "without torchrun"
            )
        self.config = config
        cpu = choose_device(config.run.device).type == "cpu"
        self.processes = Processes.join(cpu=cpu, timeout=config.run.process_timeout) if join else Processes()
        self.sharded = config.run.shard and self.processes.count > 1
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        self.device = choose_device(config.run.device)
        torch.backends.cuda.matmul.allow_tf32 = config.precision.tf32
        torch.backends.cudnn.allow_tf32 = config.precision.tf32
        low = config.precision.autocast == "bf16" or config.backbone.dtype == "bfloat16"
        _choose_attention(config.precision.attention, self.device, torch.bfloat16 if low else torch.float32)
        self._directory = directory
        self._trackers = list(config.logging.trackers) if directory is not None and self.processes.main else []
        self._accelerator: Accelerator | None = None
        for tracker in self._trackers:
            _require(tracker)

    def start_trackers(self) -> None:
        """Open the trackers. From here on they write, so this comes when all else has been checked."""
        if self._trackers:
            with self._trackers_may_fail():
                self._accelerator = Accelerator(
                    cpu=self.device.type == "cpu", log_with=self._trackers, project_dir=str(self._directory)
                )
                self._accelerator.init_trackers(self.config.logging.project)

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision as configured; accelerate is not needed for one process."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.config.precision.autocast == "bf16",
            cache_enabled=not self.sharded,  # it would keep the casts of weights that are given back after their block
        )

    def track(self, values: Mapping[str, Any], step: int) -> None:
        """Send flat numbers to the trackers."""
        if self._accelerator is not None:
            with self._trackers_may_fail():
                self._accelerator.log(dict(values), step=step)

    @contextmanager
    def _trackers_may_fail(self) -> Iterator[None]:
        """A tracker that raises (its server is gone, its disk is full) is told of once and no longer asked: what it
        shows is in the run's own logs."""
        try:
            yield
        except Exception as error:
            self._accelerator = None
            log.warning(
                "logging.trackers: %s failed and is switched off, the run goes on: %s: %s",
                ", ".join(self._trackers), type(error).__name__, error,
            )  # fmt: skip

    def peak_memory(self) -> int:
        """Bytes: largest allocation on the card since the start, or the largest resident size of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but in bytes on macOS
        return largest if sys.platform == "darwin" else largest * 1024

    def forget_peak_memory(self) -> None:
        """Count the card's largest allocation anew; the process's resident size cannot be."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronize(self) -> None:
        """Wait for the device, so that clocks measure work and not its queueing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Finish the trackers, and part from the other processes."""
        try:
            if self._accelerator is not None:
                with self._trackers_may_fail():
                    self._accelerator.end_training()
        finally:
            self.processes.leave()


KERNELS = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}
"""Switches of torch's attention kernels. They are set for the process, not around the passes, because a pass that is
recomputed in the backward pass has to choose what the forward pass chose."""
GENERAL = ("efficient", "math")
"""Those that take what the quick ones do not: masks of text encoders, the float32 of autoencoders."""


def _choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Leave a kernel on, and the more general ones for what it cannot take; or all of them.

    Raises UserError if it does not work on this device.
    """
    wanted = tuple(KERNELS) if name == "auto" else (name, *GENERAL[GENERAL.index(name) + 1 if name in GENERAL else 0 :])
    try:
        if name != "auto":
            _try_attention(name, device, dtype)
    finally:
        for kernel, enable in KERNELS.items():
            enable(kernel in wanted)


def _try_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    for kernel, enable in KERNELS.items():
        enable(kernel == name)
    trial = torch.zeros(1, 2, 8, 64, device=device, dtype=dtype)
    try:
        torch.nn.functional.scaled_dot_product_attention(trial, trial, trial)
    except RuntimeError as error:
        raise UserError(
            f"precision.attention: {name} does not work on this {device.type} with "
            f"{str(dtype).removeprefix('torch.')}; use auto"
        ) from error


def _require(tracker: str) -> None:
    import importlib.util

    if importlib.util.find_spec(tracker) is None:
        raise UserError(f"logging.trackers: {tracker} is not installed: pip install {tracker}")
