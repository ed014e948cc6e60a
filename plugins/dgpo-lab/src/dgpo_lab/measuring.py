"""Measure a short run, for `dgpo bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.system.device import device_name
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_lab.planning.ceiling import measured_tflops
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

__all__ = ["lines", "measure"]

PHASES = {
    "rollout": "rollout",
    "wait_for_scores": "score",
    "compute_advantages": "compute_advantages",
    "optimize": "optimize",
}
"""Phases of timings.jsonl mapped to reported names. Scoring overlaps the rollout, so its time is the waiting time."""


class _Told(Callback):
    """Tells which phase of which iteration a run is in."""

    def __init__(self, on_message: Callable[[str], None], iterations: int) -> None:
        self._on_message, self._iterations, self._iteration = on_message, iterations, 1

    def on_progress(self, phase: str, done: int, total: int) -> None:
        self._on_message(f"iteration {self._iteration} of {self._iterations}: {phase.replace('_', ' ')} {done}/{total}")

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        self._iteration = metrics.iteration + 1


def measure(
    config: RunConfig, registry: Registry, iterations: int, on_message: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train a run and return the means over its last `iterations` timings as JSON data.

    on_message: called with what is being done.
    """
    trainer = Trainer(config, registry, callbacks=[_Told(on_message, config.run.iterations)])
    device = trainer.runtime.device
    trainer.train()
    on_message("measuring the ceiling")
    run = RunDirectory(Path(config.run.output) / config.run.name)
    kept = [TimingRecord.model_validate(line) for line in run.sound("timings.jsonl")][-iterations:]
    low = config.backbone.dtype == "bfloat16" or config.precision.autocast == "bf16"
    dtype = torch.bfloat16 if low else torch.float32
    ceiling = measured_tflops(device, dtype)
    total = config.rollout.groups * config.rollout.group_size
    operations = _operations(config, registry)
    phases: dict[str, Any] = {}
    for key, phase in PHASES.items():
        seconds = sum(t.phases[key].seconds for t in kept if key in t.phases) / len(kept)
        count = operations.get(phase)
        achieved = count / seconds / 1e12 if count and seconds else None
        phases[phase] = {
            "seconds": seconds,
            "samples_per_second": total / seconds if seconds else None,
            "tflops": achieved,
            "fraction": achieved / ceiling if achieved else None,
        }
    name = f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device_name(device)
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "ceiling_tflops": ceiling,
        "samples": total,
        "iterations": len(kept),
        "seconds": sum(t.seconds for t in kept) / len(kept),
        "phases": phases,
        "peak_memory_bytes": max(t.peak_memory_bytes for t in kept),
    }


def _operations(config: RunConfig, registry: Registry) -> Mapping[str, float]:
    """Return the operations of an iteration by phase; empty if the backbone has no meta model."""
    try:
        return make_plan(config, measure_model(config, registry), registry).operations
    except UserError:
        return {}


def lines(measured: dict[str, Any]) -> list[str]:
    """Format a measurement as a text table."""
    text = [
        f"{measured['device']}: {measured['samples']} samples per iteration, mean over {measured['iterations']}",
        f"ceiling: {measured['ceiling_tflops']:.3g} TFLOP/s (measured with {measured['dtype']} matrix products)",
        "",
        f"{'phase':<18} {'seconds':>9} {'samples/s':>11} {'TFLOP/s':>11} {'of ceiling':>11}",
    ]
    for phase, row in measured["phases"].items():
        achieved = f"{row['tflops']:.3g}" if row["tflops"] else ""
        share = f"{row['fraction']:.0%}" if row["fraction"] else ""
        rate = f"{row['samples_per_second']:,.1f}" if row["samples_per_second"] and row["seconds"] > 1e-3 else ""
        name = phase.replace("_", " ")
        text.append(f"{name:<18} {row['seconds']:>9.3f} {rate:>11} {achieved:>11} {share:>11}")
    text += [
        f"{'iteration':<18} {measured['seconds']:>9.3f} {measured['samples'] / measured['seconds']:>11,.1f}",
        "",
        f"peak memory: {measured['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]
    if all(row["tflops"] is None for row in measured["phases"].values()):
        text.append("FLOPs are unknown: the backbone has no meta model (Backbone.meta_model)")
    return text
