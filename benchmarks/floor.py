"""The floor of an iteration: operations that have to be done, weights that have to be read, and what GPUs could do.

Operations are torch's count on the model's meta model (`dgpo plan`). The least traffic is every pass reading the
network's weights once: where the operations' time is far above it, a model is bound by arithmetic and not by memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.batch_sizes import drawn_at_once, trained_at_once
from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_lab.planning.shapes import CUDA

__all__ = ["CASES", "Floor", "measure"]

EXAMPLES = Path(__file__).parents[1] / "examples"
CASES = {
    "SD3.5-M at 512 x 512, as published": ("sd35-geneval.yaml", ()),
    "SD3.5-M at 1024 x 1024": ("sd35-geneval.yaml", ("rollout.resolution=1024",)),
    "Wan 2.1 1.3B, the example": ("wan21-1.3b-ocr.yaml", ()),
}
CARD = "h200"


@dataclass(frozen=True)
class Floor:
    """operations: 10^15 of an iteration by phase; per_sample: 10^12 of a sample by phase; seconds: by phase at the peak
    of `CARD`; traffic: seconds by phase that reading the weights takes there; peak: GiB of one GPU."""

    name: str
    samples: int
    operations: dict[str, float]
    per_sample: dict[str, float]
    seconds: dict[str, float]
    traffic: dict[str, float]
    peak: float


def measure(name: str) -> Floor:
    """Plan the case's run."""
    file, settings = CASES[name]
    registry = Registry()
    config = load_run_config(EXAMPLES / file, list(settings), registry)
    model = measure_model(config, registry)
    plan = make_plan(config, model, registry)
    rollout, card = config.rollout, CARDS[CARD]
    total = rollout.groups * rollout.group_size
    weights = model.held["transformer"] + model.held["trained weights"]
    drawn, learned = drawn_at_once(config, CUDA), trained_at_once(config, CUDA)
    passes = {
        "rollout": -(-total // drawn) * rollout.steps,
        # The policy's forward and backward pass, its reference's and the old policy's forward passes.
        "optimize": -(-total // learned) * config.timesteps.count * config.optimizer.passes * 4,
    }
    return Floor(
        name=name,
        samples=total,
        operations={phase: count / 1e15 for phase, count in plan.operations.items()},
        per_sample={phase: count / total / 1e12 for phase, count in plan.operations.items()},
        seconds=plan.seconds(card.tflops, dict.fromkeys(plan.operations, 1.0)),
        traffic={phase: count * weights / (card.bandwidth * 1e12) for phase, count in passes.items()},
        peak=plan.peak / 2**30,
    )
