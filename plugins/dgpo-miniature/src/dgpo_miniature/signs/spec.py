"""Training of the checkpoint of signs; run it with `python -m dgpo_miniature.train --world signs`.

Trains the autoencoder, encodes captioned images, then trains the transformer with its text encoders, first on correct
captions, then on partly misspelled captions. One seed determines all randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dgpo_miniature.signs.data import Faults, build_bank, random_images, sign_tokenizer
from dgpo_miniature.signs.prompts import prompts
from dgpo_miniature.signs.score import score
from dgpo_miniature.training.autoencoder import AutoencoderSettings, latent_statistics, train_autoencoder
from dgpo_miniature.training.checkpoint import assemble, save
from dgpo_miniature.training.flow import Cycle, FlowSettings, Progress, new_trainer, train_phase
from dgpo_miniature.training.transformer import TextToImage, captioned

__all__ = ["TINY", "TrainingSpec", "run"]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """Settings of the training; with the seed, they determine the checkpoint."""

    autoencoder: AutoencoderSettings = field(
        default_factory=lambda: AutoencoderSettings(cell_steps=0, image_steps=1600, batch=32)
    )
    transformer: FlowSettings = field(default_factory=lambda: FlowSettings(layers=4))
    true_images: int = 20_000
    faulty_images: int = 20_000
    true: Cycle = field(default_factory=lambda: Cycle(1000, warmup=100))
    faulty: Cycle = field(default_factory=lambda: Cycle(500, decay=0.75))
    faults: Faults = field(default_factory=lambda: Faults(replaced=0.35, swapped=0.15))
    scored: int = 288
    """Number of held-out prompts that score the result."""


TINY = TrainingSpec(
    autoencoder=AutoencoderSettings(cell_steps=0, image_steps=2, batch=8),
    transformer=replace(FlowSettings(), layers=2, heads=2, batch=8),
    true_images=64,
    faulty_images=64,
    true=Cycle(2, warmup=1),
    faulty=Cycle(2, decay=0.5),
    scored=6,
)
"""A run of a few seconds, to test the code."""


def run(spec: TrainingSpec, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its score on held-out prompts."""
    autoencoder = train_autoencoder(spec.autoencoder, seed, progress, random_images)
    shift, scale = latent_statistics(autoencoder, seed, draw=random_images)
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    tokenizer, flow = sign_tokenizer(), spec.transformer
    trainer = new_trainer(lambda: TextToImage(tokenizer, flow), flow, seed)
    true = build_bank(spec.true_images, Faults(), autoencoder, tokenizer, seed)
    train_phase(trainer, "true captions", spec.true, captioned(true, flow), progress, half=True)
    faulty = build_bank(spec.faulty_images, spec.faults, autoencoder, tokenizer, seed + 1)
    train_phase(trainer, "faulty captions", spec.faulty, captioned(faulty, flow), progress, half=True)
    pipeline = assemble(trainer.average, autoencoder, tokenizer)
    save(pipeline, out)
    return score(pipeline, prompts("heldout", spec.scored))
