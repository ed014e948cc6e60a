"""Training on exact comparisons reaches what training on the values reaches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

import dgpo_judge.pairwise as pairwise_module
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import ToyPlugin, run_data
from dgpo_schemas.run import RunConfig

SEEDS = 5
MARGIN = 0.25
"""Of what training on the values gains: set before the first comparison of five seeds."""
VARIANTS: dict[str, dict[str, Any]] = {
    "values": {"use": "toy"},
    "comparisons": {"use": "pairwise", "options": {"reward": {"use": "toy"}}},
}


@pytest.mark.slow
def test_comparisons_train_to_within_the_margin_of_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 90 % t interval of the paired difference lies inside the margin (two one-sided tests at 5 %)."""
    registry = Registry()
    registry.register(ToyPlugin(reward="toy"), distribution="toy")
    monkeypatch.setattr(pairwise_module, "get_registry", lambda: registry)

    def scores(variant: str, seed: int) -> tuple[float, float]:
        data = run_data(
            tmp_path,
            run={"name": f"{variant}-{seed}", "iterations": 20, "seed": seed},
            rewards=[VARIANTS[variant]],
            rollout={"groups": 4, "group_size": 8},
            optimizer={"learning_rate": 0.02},
            objective={"beta": 100},
            evaluation={"every": 20, "images": 0, "prompts": 32, "model": "policy", "rewards": [{"use": "toy"}]},
            checkpoints={"every": 1000},
        )
        assert Trainer(RunConfig.model_validate(data), registry).train() == "finished"
        lines = (tmp_path / f"{variant}-{seed}/evaluations.jsonl").read_text().splitlines()
        first, last = (line["value"] for line in map(json.loads, lines) if line["role"] == "target")
        return first, last

    found = {variant: np.array([scores(variant, seed) for seed in range(SEEDS)]) for variant in VARIANTS}
    gain = float((found["values"][:, 1] - found["values"][:, 0]).mean())
    difference = found["comparisons"][:, 1] - found["values"][:, 1]
    half = float(student.ppf(0.95, SEEDS - 1)) * float(difference.std(ddof=1)) / math.sqrt(SEEDS)
    low, high = difference.mean() - half, difference.mean() + half
    assert gain > 0.01
    assert -MARGIN * gain < low
    assert high < MARGIN * gain
