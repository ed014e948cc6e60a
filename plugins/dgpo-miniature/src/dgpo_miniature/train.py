"""Trains a shipped checkpoint from nothing: `python -m dgpo_miniature.train --out DIR [--world signs]`.

This module has the recipe of the world of shapes, `signs.recipe` that of the world of signs. Autoencoder, then
captioned latents, then the transformer with its text encoders, first on true captions, then on captions part of which
are wrong. One seed decides everything; the same machine and versions give the same weights.
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

from dgpo_miniature.prompts import prompts
from dgpo_miniature.signs import recipe as signs
from dgpo_miniature.training.autoencoder import (
    AutoencoderSettings,
    Progress,
    latent_statistics,
    train_autoencoder,
)
from dgpo_miniature.training.checkpoint import assemble, save
from dgpo_miniature.training.data import FAULT_RATES, build_bank
from dgpo_miniature.training.score import score
from dgpo_miniature.training.text import build_tokenizer
from dgpo_miniature.training.transformer import Cycle, Phase, TransformerSettings, new_trainer, train_phase

__all__ = ["Recipe", "main", "run"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that makes the checkpoint what it is, apart from the seed."""

    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    true_pictures: int = 40_000
    faulty_pictures: int = 60_000
    true: Cycle = field(default_factory=lambda: Cycle(2400, warmup=100))
    faulty: tuple[Cycle, ...] = field(
        default_factory=lambda: (Cycle(950, decay=0.75), Cycle(900, warmup=30, decay=0.57, lr_scale=0.8))
    )
    mismatched_share: float = 0.02
    """Share of captions, in the second phase, that belong to another picture altogether."""
    scored: int = 600
    """Held-out prompts on which the result is scored."""


TINY = Recipe(
    autoencoder=replace(AutoencoderSettings(), cell_steps=2, picture_steps=1, batch=8),
    transformer=replace(TransformerSettings(), layers=2, heads=2, batch=8),
    true_pictures=64,
    faulty_pictures=64,
    true=Cycle(2, warmup=1),
    faulty=(Cycle(2, decay=0.5),),
    scored=6,
)
"""The same path in seconds, to see that it runs."""


def run(recipe: Recipe, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its task means on held-out prompts."""
    autoencoder = train_autoencoder(recipe.autoencoder, seed, progress)
    shift, scale = latent_statistics(autoencoder, seed)
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    tokenizer = build_tokenizer()
    trainer = new_trainer(tokenizer, recipe.transformer, seed)
    true = build_bank(recipe.true_pictures, {}, autoencoder, tokenizer, seed)
    train_phase(trainer, Phase("true captions", true, recipe.true), progress)
    faulty = build_bank(recipe.faulty_pictures, FAULT_RATES, autoencoder, tokenizer, seed + 1)
    for cycle in recipe.faulty:
        phase = Phase("faulty captions", faulty, cycle, mismatched_share=recipe.mismatched_share)
        train_phase(trainer, phase, progress)
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
    parser = argparse.ArgumentParser(prog="python -m dgpo_miniature.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the new checkpoint")
    parser.add_argument("--world", choices=("shapes", "signs"), default="shapes", help="what its pictures show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--tiny", action="store_true", help="a few steps only, to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    where = (options.out, options.seed, Report())
    if options.world == "signs":
        result = signs.run(signs.TINY if options.tiny else signs.Recipe(), *where)
    else:
        result = run(TINY if options.tiny else Recipe(), *where)
    sys.stdout.write(json.dumps({task: round(value, 4) for task, value in result.items()}) + "\n")


if __name__ == "__main__":
    main()
