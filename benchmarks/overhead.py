"""What the engine costs beside the model: exclusive time of each part of an iteration, as shares of one run.

    python benchmarks/overhead.py [RUN.yaml] [--iterations N]

Every component is timed around its calls on the main thread, and time belongs to the innermost component at work, so
that the shares add up to the iteration. What is no model, no text encoder, no sampler, no autoencoder and no reward is
the engine: gathering batches, drawing noise, the objective's own arithmetic, AdamW and the moving averages, records and
logs. Rewards run on a thread of their own; what they cost an iteration is the time for which it waits. Scoring that
overlaps with a rollout slows it down where there are no spare cores: that shows in the rollout's components."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord, TimingRecord

ENGINE = "engine"
UPDATE = "optimizer update"
TARGET = 0.02


class Stopwatch(Callback):
    """Exclusive seconds by label, on the thread that made it, of iterations after the first `warmup`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.warmup = 0
        self.cuda = False
        self._stack: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()

    def on_iteration_start(self, iteration: int) -> None:
        """Attribute time outside of components to the engine."""
        if iteration == self.warmup:
            self.seconds.clear()
        self._enter(ENGINE)

    def on_phase_start(self, phase: str) -> None:
        """Start timing the wait for rewards, which run on other threads."""
        if phase == "wait_for_scores":
            self._enter("waiting for rewards")

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """Stop timing the wait for rewards."""
        if phase == "wait_for_scores":
            self._leave()

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Stop timing the engine."""
        self._leave()

    def _enter(self, label: str) -> None:
        self._toggle()
        self._stack.append(label)

    def _leave(self) -> None:
        self._toggle()
        self._stack.pop()

    def _toggle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()  # attribute queued device work to the component that queued it
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def time(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time is added to a label."""

        @functools.wraps(call)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if threading.get_ident() != self._thread:
                return call(*arguments, **keywords)
            self._enter(label)
            try:
                return call(*arguments, **keywords)
            finally:
                self._leave()

        return timed

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Replace a method by a timed one."""
        setattr(owner, name, self.time(label, getattr(owner, name)))


def measure(file: Path, iterations: int, warmup: int) -> dict[str, float]:
    """Return seconds per iteration by label, without the first `warmup` iterations."""
    with tempfile.TemporaryDirectory() as directory:
        settings = [f"run.output={directory}", f"run.iterations={warmup + iterations}", "prompts.heldout=null"]
        settings += ["evaluation.every=0", "evaluation.rewards=null", "checkpoints.every=1000000"]
        registry = get_registry()
        trainer = Trainer(
            load_run_config(file, settings, registry=registry), registry, callbacks=[watch := Stopwatch()]
        )
        run = trainer.build()
        watch.warmup, watch.cuda = warmup, run.runtime.device.type == "cuda"
        watch.wrap(run.sampler, "sample", "sampler arithmetic")
        watch.wrap(run.policy, "velocity", ENGINE)
        watch.wrap(run.backbone, "velocity", "model forward")
        for encode in ("encode", "unconditional"):
            watch.wrap(run.backbone, encode, "text encoders")
        watch.wrap(run.backbone, "decode_rollouts", "autoencoder")
        watch.wrap(run.policy, "backward", "model backward")
        watch.wrap(run.optimizer.adamw, "step", UPDATE)
        watch.wrap(run.policy, "update_averages", UPDATE)
        trainer.train()
        if missing := {"model forward", "autoencoder", "model backward", UPDATE} - watch.seconds.keys():
            raise RuntimeError(f"never called, so that its time was counted as the engine's: {', '.join(missing)}")
        return {label: spent / iterations for label, spent in watch.seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args()
    spent = measure(options.file, options.iterations, options.warmup)
    total = sum(spent.values())
    order = sorted(spent, key=lambda label: (label in (ENGINE, UPDATE), -spent[label]))
    lines = [f"{'component':<22}{'ms an iteration':>18}{'share':>10}"]
    lines += [f"{label:<22}{spent[label] * 1e3:>18.1f}{spent[label] / total:>10.1%}" for label in order]
    overhead = (spent[ENGINE] + spent[UPDATE]) / total
    lines.append(f"{'iteration':<22}{total * 1e3:>18.1f}{1:>10.1%}")
    verdict = "met" if overhead < TARGET else "MISSED"
    lines.append(f"engine and optimizer update: {overhead:.1%} of an iteration (target: below {TARGET:.0%}, {verdict})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
