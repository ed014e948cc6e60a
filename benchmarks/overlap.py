"""How much of scoring hides behind the rollout: the run's model beside a reward that is as slow as its rollout.

    python benchmarks/overlap.py [RUN.yaml] [--iterations N]

An iteration's samples are drawn in eight micro-batches, and each is scored while the next one is drawn. The reward
sleeps for as long as drawing the micro-batch took; like a reward in another process, on another GPU or machine, it
takes no processor time from the rollout. One after the other both would take their sum; side by side, the scoring of
the last micro-batch cannot hide: (8 + 1) / (8 + 8) = 0.56 of the sum is the best there is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.contracts import RewardModel
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, Scores
from dgpo_schemas.metrics import MetricsRecord, TimingRecord

COMPONENTS = 8
TARGET = 0.6


@dataclass(frozen=True)
class Spent:
    """Seconds of an iteration: drawing, scoring, and both together as the run waited for them."""

    drawing: float
    scoring: float
    both: float

    @property
    def share(self) -> float:
        """Of the sum that one after the other would take."""
        return self.both / (self.drawing + self.scoring)


class Clock(Callback):
    """Measures how long each micro-batch takes to draw, and keeps what each iteration took. Rewards take the durations
    in the order of the micro-batches."""

    def __init__(self) -> None:
        self.drawn: SimpleQueue[float] = SimpleQueue()
        self.spent: list[Spent] = []
        self._since = 0.0

    def on_phase_start(self, phase: str) -> None:
        """A rollout begins."""
        if phase == "rollout":
            self._since = self._now()

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """A micro-batch is drawn, and its scores are asked for."""
        if phase == "rollout":
            now = self._now()
            self.drawn.put(now - self._since)
            self._since = now

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """One more."""
        drawing, waiting = (timing.phases[phase].seconds for phase in ("rollout", "wait_for_scores"))
        self.spent.append(Spent(drawing, timing.rewards["slow"], drawing + waiting))

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what is queued is not drawn yet
        return time.perf_counter()


CLOCK = Clock()


class SlowReward(RewardModel):
    """Mean brightness, after as long as the micro-batch took to draw."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The mean over each sample."""
        time.sleep(CLOCK.drawn.get())
        return Scores(media.float().flatten(1).mean(1).clamp(0, 1), torch.zeros(len(media), dtype=torch.bool))


class _Plugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("slow", "Brightness, after a while", f"{__name__}:SlowReward")]


def measure(file: Path, iterations: int) -> list[Spent]:
    """Iterations of a run with the slow reward, without the first."""
    registry = Registry()
    registry.register(_Plugin(), distribution="benchmark")
    with tempfile.TemporaryDirectory() as directory:
        settings = [f"run.output={directory}", f"run.iterations={iterations + 1}", "checkpoints.every=1000000"]
        settings += ["rewards=[{use: slow}]", "prompts.heldout=null", "evaluation={every: 0}"]
        settings += ["timesteps.count=1"]  # what is optimized does not matter here
        planned = load_run_config(file, settings).rollout
        settings.append(f"rollout.micro_batch={-(-planned.groups * planned.group_size // COMPONENTS)}")
        CLOCK.spent.clear()
        Trainer(load_run_config(file, settings, registry=registry), registry, callbacks=[CLOCK]).train()
        return CLOCK.spent[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--iterations", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.file, options.iterations)
    drawing, scoring, both, share = (
        statistics.median(getattr(spent, name) for spent in found) for name in ("drawing", "scoring", "both", "share")
    )
    lines = [f"{f'median of {len(found)} iterations':<36}{'seconds':>10}"]
    for label, value in (
        ("rollout", drawing),
        (f"scores, in {COMPONENTS} micro-batches", scoring),
        ("rollout and scores, the sum", drawing + scoring),
        ("rollout and waiting for scores", both),
    ):
        lines.append(f"{label:<36}{value:>10.3f}")
    verdict = "met" if share <= TARGET else "MISSED"
    lines.append(
        f"scoring overlapped: {share:.3f} of the sum (target: at most {TARGET}, {verdict}; best possible: "
        f"{(COMPONENTS + 1) / (2 * COMPONENTS):.3f})"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
