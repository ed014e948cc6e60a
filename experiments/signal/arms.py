"""What is compared: groups that are drawn, chosen and trained on in several ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.run import RunConfig
from experiments.catalog import HERE

__all__ = ["ARMS", "CANDIDATES", "CHEAP", "PLAIN", "THRESHOLD", "Arm", "by_steps", "config_of"]

BASE = HERE / "fast.yaml"
SEED = 300
"""Seed of all draws, which no other experiment has."""
PLAIN = "plain"
CANDIDATES = 16
CHEAP = (4, 3, 2)
"""Solver steps of the samples that only rank candidates."""
THRESHOLD = 1.25
"""The engine gets a rollout plan only if an arm that ranks by cheap steps has more than so many times the signal to
noise of the plain one, at the base model."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to make a group. settings: changes of the run file, whose `rollout.group_size` members are trained on.

    ranked_by: if not None, these are the best half and the worst half of as many among CANDIDATES candidates, ranked by
    the rewards of samples of the same noise in so many steps; shared: part of the initial noise's variance that all
    members of a group have in common.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranked_by: int | None = None
    shared: float = 0.0


def by_steps(steps: int) -> str:
    """Return the name of the arm whose candidates are ranked by samples in so many steps."""
    return f"4 + 4 of {CANDIDATES} by {steps} steps"


ARMS = (
    Arm(PLAIN),
    Arm("G 16", {"rollout.group_size": 16}),
    Arm("8 times", {"timesteps.count": 8}),
    Arm("stratified times", {"timesteps.use": "stratified"}),
    Arm("no std", {"advantages.std": "none"}),
    Arm("ranks", {"weighting.use": "rank"}),
    Arm("noise half shared", shared=0.5),
    *(Arm(by_steps(steps), ranked_by=steps) for steps in (8, *CHEAP)),
)


def config_of(arm: Arm, directory: str, registry: Registry, iterations: int = 1) -> RunConfig:
    """Return the configuration of an arm, with one iteration more than `iterations`, because a run ends with an
    evaluation."""
    here = {
        "run.output": directory, "run.seed": SEED, "run.iterations": iterations + 1,
        "evaluation.every": 0, "checkpoints.every": 1_000_000,
    }  # fmt: skip
    return load_run_config(BASE, [f"{key}={value}" for key, value in {**arm.settings, **here}.items()], registry)
