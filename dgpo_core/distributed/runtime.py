"""Device, precision and process group of a process of a run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dgpo_core.distributed.processes import Processes
from dgpo_core.errors import UserError
from dgpo_core.system.determinism import make_deterministic
from dgpo_core.system.device import choose_device, forget_peak_bytes, peak_bytes, wait_for_device
from dgpo_schemas.run import on_mps

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["Runtime"]


class Runtime:
    """Device, precision and process group of one process.

    directory: the run directory of a training run, which always joins the process group. join: whether to join the
    processes that a launcher has started (True) or to ignore them (False); None raises UserError if there are any.
    """

    def __init__(self, config: RunConfig, directory: Path | None = None, *, join: bool | None = None) -> None:
        join = True if directory is not None else join
        if join is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "only `dgpo train`, `evaluate`, `sample`, `score` and `export` work with several processes; start this "
                "command without torchrun"
            )
        self.config = config
        kind = choose_device(config.run.device).type
        cpu = kind == "cpu"
        if kind == "mps":
            _check_mps(config)
        self.deterministic = config.run.deterministic and not cpu  # on the CPU, results are reproducible anyway
        if self.deterministic:
            make_deterministic()
        self.processes = Processes.join(cpu=cpu, timeout=config.run.process_timeout) if join else Processes()
        self.sharded = bool(config.run.shard) and self.processes.count > 1
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        self.device = choose_device(config.run.device)
        torch.backends.cuda.matmul.allow_tf32 = config.precision.tf32
        torch.backends.cudnn.allow_tf32 = config.precision.tf32
        low = config.precision.autocast == "bf16" or config.backbone.dtype == "bfloat16"
        _choose_attention(config.precision.attention, self.device, torch.bfloat16 if low else torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for the configured precision."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.config.precision.autocast == "bf16",
            cache_enabled=not self.sharded,  # the cache would keep casts of weights resharded after their block
        )

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: allocated GPU memory since the last reset, or on the CPU the peak RSS."""
        return peak_bytes(self.device)

    def forget_peak_memory(self) -> None:
        """Reset the GPU's peak memory counter; the peak RSS of a process cannot be reset."""
        forget_peak_bytes(self.device)

    def synchronize(self) -> None:
        """Wait for queued GPU work, so that timers measure the work itself."""
        wait_for_device(self.device)

    def close(self) -> None:
        """Leave the process group."""
        self.processes.leave()


def _check_mps(config: RunConfig) -> None:
    """Raise UserError for settings that are not possible on MPS, which `run.device: auto` may have chosen."""
    found = [f"{key}: {message}" for key, message in on_mps(config)]
    if found:
        raise UserError("\n  ".join([f"run.device: {config.run.device} is MPS on this machine, where", *found]))


KERNELS = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}
"""torch's attention backends. They are enabled for the whole process and not per forward pass, because a pass that is
recomputed for gradient checkpointing must select the same kernel again."""
GENERAL = ("efficient", "math")
"""Fallbacks for what faster kernels do not support: attention masks of text encoders, float32 in autoencoders."""


def _choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Enable a kernel and its more general fallbacks, or all kernels for "auto".

    Raises UserError if the kernel does not work on this device.
    """
    fallbacks = GENERAL[GENERAL.index(name) + 1 if name in GENERAL else 0 :]
    enabled = tuple(KERNELS) if name == "auto" else (name, *fallbacks)
    try:
        if name != "auto":
            _try_attention(name, device, dtype)
    finally:
        for kernel, enable in KERNELS.items():
            enable(kernel in enabled)


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
