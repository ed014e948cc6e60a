"""Trains the shipped checkpoint from nothing: `python -m dgpo_video.miniature.train --out DIR`.

Autoencoder, then a bank of latents, then the transformer with its text encoder, first on true captions, then on
captions part of which are wrong. One seed decides everything; the same machine and versions give the same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dgpo_video.miniature.prompts import prompts
from dgpo_video.miniature.training.autoencoder import AutoencoderSettings, Progress, Stage, train_autoencoder
from dgpo_video.miniature.training.checkpoint import assemble, save
from dgpo_video.miniature.training.data import build_bank
from dgpo_video.miniature.training.flow import Cycle, FlowSettings, new_trainer, train_phase
from dgpo_video.miniature.training.score import score
from dgpo_video.miniature.training.text import build_tokenizer

__all__ = ["Recipe", "main", "run"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that makes the checkpoint what it is, apart from the seed."""

    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    clips: int = 9_600
    true: Cycle = field(default_factory=lambda: Cycle(3500, warmup=100, decay=0.4))
    faulty: Cycle = field(default_factory=lambda: Cycle(900, fault_rate=0.42, warmup=50, decay=0.7))
    scored: int = 240
    """Held-out prompts on which the result is scored."""


TINY = Recipe(
    autoencoder=AutoencoderSettings(
        Stage(2, 4, foreground=10.0), Stage(2, 2, foreground=4.0), Stage(2, 2, foreground=1.0)
    ),
    flow=replace(FlowSettings(), layers=2, heads=2, batch=8),
    clips=48,
    true=Cycle(2, warmup=1),
    faulty=Cycle(2, fault_rate=0.5),
    scored=6,
)
"""The same path in seconds, to see that it runs."""


def run(recipe: Recipe, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its score on held-out prompts."""
    autoencoder = train_autoencoder(recipe.autoencoder, seed, progress)
    tokenizer = build_tokenizer()
    bank = build_bank(recipe.clips, autoencoder, seed)
    trainer = new_trainer(tokenizer, recipe.flow, seed)
    train_phase(trainer, "true captions", bank, recipe.true, progress)
    train_phase(trainer, "faulty captions", bank, recipe.faulty, progress)
    pipeline = assemble(trainer.average, autoencoder, tokenizer)
    save(pipeline, out)
    return score(pipeline, prompts("heldout", recipe.scored))


class Report:
    """Prints progress every few seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.start = self.last = time.monotonic()
        self.every = every
        self.losses: list[float] = []

    def __call__(self, phase: str, step: int, steps: int, loss: float) -> None:
        """Note one step."""
        self.losses.append(loss)
        now = time.monotonic()
        if now - self.last >= self.every or step == steps:
            mean = sum(self.losses) / len(self.losses)
            sys.stdout.write(f"{now - self.start:6.0f} s  {phase}: step {step} of {steps}, loss {mean:.4f}\n")
            sys.stdout.flush()
            self.last, self.losses = now, []


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m dgpo_video.miniature.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the new checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--tiny", action="store_true", help="a few steps only, to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = run(TINY if options.tiny else Recipe(), options.out, options.seed, Report())
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in result.items()}) + "\n")


if __name__ == "__main__":
    main()
