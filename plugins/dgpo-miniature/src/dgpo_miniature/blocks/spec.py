"""Training of the checkpoint of blocks; run it with `python -m dgpo_miniature.train --world blocks`.

Trains the autoencoder, encodes captioned images, then trains the transformer with its text encoders, first on correct
captions, then on partly wrong captions. One seed determines all randomness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dgpo_miniature.blocks.data import FAULT_RATES, block_tokenizer, build_bank, random_images
from dgpo_miniature.blocks.prompts import prompts
from dgpo_miniature.blocks.score import score
from dgpo_miniature.training.autoencoder import AutoencoderSettings, latent_statistics, train_autoencoder
from dgpo_miniature.training.checkpoint import assemble, save
from dgpo_miniature.training.flow import Cycle, FlowSettings, Progress, new_trainer, train_phase
from dgpo_miniature.training.transformer import TextToImage, captioned

__all__ = ["TINY", "TrainingSpec", "run"]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """Settings of the training; with the seed, they determine the checkpoint."""

    autoencoder: AutoencoderSettings = field(
        default_factory=lambda: AutoencoderSettings(
            cell_steps=0, image_steps=1500, batch=32, channels=(8, 16, 32), size=16
        )
    )
    transformer: FlowSettings = field(default_factory=lambda: FlowSettings(layers=1, heads=2, batch=128))
    true_images: int = 60_000
    faulty_images: int = 60_000
    true: Cycle = field(default_factory=lambda: Cycle(3000, warmup=100))
    faulty: Cycle = field(default_factory=lambda: Cycle(1000, decay=0.75))
    fault_rates: Mapping[str, float] = field(default_factory=lambda: FAULT_RATES)
    mismatched_share: float = 0.02
    """Fraction of captions in the second phase that belong to another image."""
    scored: int = 800
    """Number of held-out prompts that score the result."""


TINY = TrainingSpec(
    autoencoder=AutoencoderSettings(cell_steps=0, image_steps=2, batch=8, channels=(8, 16, 32), size=16),
    transformer=replace(FlowSettings(), layers=1, heads=1, batch=8),
    true_images=64,
    faulty_images=64,
    true=Cycle(2, warmup=1),
    faulty=Cycle(2, decay=0.5),
    scored=8,
)
"""A run of a few seconds, to test the code."""


def run(spec: TrainingSpec, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its score on held-out prompts."""
    autoencoder = train_autoencoder(spec.autoencoder, seed, progress, random_images)
    shift, scale = latent_statistics(autoencoder, seed, draw=random_images)
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    tokenizer, flow = block_tokenizer(), spec.transformer
    trainer = new_trainer(lambda: TextToImage(tokenizer, flow), flow, seed)
    true = build_bank(spec.true_images, {}, autoencoder, tokenizer, seed)
    train_phase(trainer, "true captions", spec.true, captioned(true, flow), progress)
    faulty = build_bank(spec.faulty_images, spec.fault_rates, autoencoder, tokenizer, seed + 1)
    draw = captioned(faulty, flow, spec.mismatched_share)
    train_phase(trainer, "faulty captions", spec.faulty, draw, progress)
    pipeline = assemble(trainer.average, autoencoder, tokenizer)
    save(pipeline, out)
    return score(pipeline, prompts("heldout", spec.scored))
