"""Our side: a training run as the command line starts it, with a callback that takes turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import registry_with_components
from benchmarks.peers.pace import Pace
from benchmarks.peers.work import ADAPTED, ALPHA, RANK, Work
from dgpo_core.errors import RunStopped
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.run import RunConfig

__all__ = ["configuration", "drive"]


def configuration(work: Work, checkpoint: Path, output: Path, *, merge_adapter: bool = False) -> RunConfig:
    """The published recipe at the work's size, in float32, with groups that fit whole into a micro-batch."""
    return RunConfig.model_validate(
        {
            "run": {"name": "peers", "output": str(output), "iterations": 10**6, "threads": 1},
            "backbone": {
                "use": "sd3",
                "checkpoint": str(checkpoint),
                "lora": {"rank": RANK, "alpha": ALPHA, "targets": list(ADAPTED)},
                "options": {"text_length": work.text_tokens},
            },
            "prompts": {"train": {"use": "numbered"}},
            "rollout": {
                "sampler": "flow-dpmpp", "steps": work.steps, "shift": work.shift, "guidance": work.guidance,
                "group_size": work.group_size, "groups": work.groups, "micro_batch": work.group_size,
                "resolution": work.pixels, "merge_adapter": merge_adapter,
            },
            "rewards": [{"use": "free"}],
            "objective": {"beta": 100, "kl": 0.02, "clip": 1e-2},
            "timesteps": {"use": "sampler-steps", "count": work.times, "t_min": 0.5},
            "optimizer": {"micro_batch": work.group_size, "learning_rate": 3e-4, "weight_decay": 1e-4},
            "evaluation": {"every": 0, "at_start": False},
            "checkpoints": {"every": 10**6},
        }
    )  # fmt: skip


class _Turns(Callback):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_iteration_start(self, iteration: int) -> None:
        self._pace.iteration()

    def on_phase_start(self, phase: str) -> None:
        if phase == "optimize":
            self._pace.optimizing()


def drive(
    path: Path | None,
    work: Work,
    checkpoint: Path,
    directory: Path,
    pace: Pace,
    device: torch.device,
    *,
    merge_adapter: bool = False,
) -> None:
    """Train until Enough."""
    config = configuration(work, checkpoint, directory, merge_adapter=merge_adapter)
    trainer = Trainer(config, registry_with_components(), callbacks=[_Turns(pace)])
    backbone: Any = trainer.build().backbone
    pace.watch(backbone.network)
    try:
        trainer.train()
    except RunStopped as stopped:  # the trainer saves its state before it passes an error on
        raise stopped.__cause__ or stopped from None
