"""What merging an adapter into bfloat16 weights changes: `python -m experiments.merging`.

The miniature of video is trained in float32. Then the adapter, with the base weights in bfloat16, draws the held-out
prompts twice from the same noise: beside the weights, and merged into them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.lora import LoraAdapter
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_core.training.metrics import prompt_scores
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.trainer import Trainer
from dgpo_lab.ablation import words
from dgpo_lab.ablation.statistics import Interval, t_interval
from dgpo_lab.program import program
from experiments.catalog import HERE

__all__ = ["Outcome", "compare", "lost_share"]

PLAIN: Mapping[str, Any] = {"evaluation.monitors": {}, "evaluation.images": 0, "evaluation.samples_per_prompt": 2}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean scores of prompts, the mean of their differences with its interval over prompts, and `lost_share`."""

    beside: float
    merged: float
    difference: Interval
    lost: float


@torch.no_grad()
def lost_share(adapter: LoraAdapter) -> float:
    """Return ||W' - (W + D)|| / ||D|| over all layers: what rounding the merged weights to W's type takes from, or adds
    to, the update D."""
    errors = updates = 0.0
    for layer in adapter.layers.values():
        weight, exact = layer.get_base_layer().weight.data, adapter.adapted(layer)
        errors += float((exact.to(weight.dtype).double() - exact.double()).square().sum())
        updates += float((exact.double() - weight.double()).square().sum())
    return float((errors / updates) ** 0.5)


def compare(file: Path, iterations: int, settings: Mapping[str, Any], registry: Registry) -> Outcome:
    """Train a run file for some iterations and evaluate its adapter both ways."""
    with tempfile.TemporaryDirectory() as directory:

        def build(**changes: Any) -> Trainer:
            every = {**PLAIN, **settings, "run.output": directory, "run.iterations": iterations + 1, **changes}
            lines = [f"{key}={json.dumps(value)}" for key, value in every.items()]
            return Trainer(load_run_config(file, lines, registry), registry)

        trainer = build(**{"evaluation.every": 0, "evaluation.at_start": False})
        trainer.train(max_iterations=iterations)
        adapter = trainer.build().backbone.adapter
        assert adapter is not None
        adapter.save(Path(directory) / "adapter", "peft")
        found, lost = [], 0.0
        for merge in (False, True):
            again = build(
                **{"backbone.dtype": "bfloat16", "backbone.lora.init": f"{directory}/adapter",
                   "rollout.merge_adapter": merge}
            )  # fmt: skip
            run = again.build()
            assert isinstance(run.backbone.adapter, LoraAdapter)
            found.append(_scores(run))
            lost = lost_share(run.backbone.adapter)
            again.close()
    beside, merged = found
    differences = [b - a for a, b in zip(beside, merged, strict=True)]
    return Outcome(sum(beside) / len(beside), sum(merged) / len(merged), t_interval(differences), lost)


def _scores(run: TrainingRun) -> Sequence[float]:
    assert run.evaluator is not None
    evaluator = run.evaluator
    samples = evaluator.evaluate("policy", 0).samples
    rewards = evaluator.scorer.rewards
    values = prompt_scores(samples, evaluator.prompts, rewards, 0, "policy").rewards[rewards[0].label].values
    return [value for value in values if value is not None]


def run(
    iterations: Annotated[int, typer.Option(help="Iterations of training.", min=1)] = 15,
    file: Annotated[Path, typer.Option(help="The run file.")] = HERE / "base-video.yaml",
) -> None:
    """Compare an adapter beside bfloat16 weights with the same adapter merged into them."""
    found = compare(file, iterations, {}, get_registry())
    typer.echo(
        f"adapter beside the weights {found.beside:.3f}, merged {found.merged:.3f}: "
        f"{words.signed(found.difference)} over {found.difference.n} prompts; rounding error of the merged weights "
        f"{found.lost:.2f} of the update"
    )


if __name__ == "__main__":
    program(run)
