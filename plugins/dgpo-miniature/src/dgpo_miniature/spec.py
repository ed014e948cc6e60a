"""Training of the checkpoint of shapes; run it with `python -m dgpo_miniature.train`.

Trains the autoencoder, encodes captioned images, then trains the transformer with its text encoders, first on correct
captions, then on partly wrong captions. One seed determines all randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dgpo_miniature.prompts import prompts
from dgpo_miniature.training.autoencoder import AutoencoderSettings, latent_statistics, train_autoencoder
from dgpo_miniature.training.checkpoint import assemble, save
from dgpo_miniature.training.data import FAULT_RATES, build_bank
from dgpo_miniature.training.flow import Cycle, FlowSettings, Progress, new_trainer, train_phase
from dgpo_miniature.training.score import score
from dgpo_miniature.training.text import build_tokenizer
from dgpo_miniature.training.transformer import TextToImage, captioned

__all__ = ["TINY", "TrainingSpec", "run"]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """Settings of the training; with the seed, they determine the checkpoint."""

    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    transformer: FlowSettings = field(default_factory=FlowSettings)
    true_images: int = 40_000
    faulty_images: int = 60_000
    true: Cycle = field(default_factory=lambda: Cycle(2400, warmup=100))
    faulty: tuple[Cycle, ...] = field(
        default_factory=lambda: (Cycle(950, decay=0.75), Cycle(900, warmup=30, decay=0.57, lr_scale=0.8))
    )
    mismatched_share: float = 0.02
    """Fraction of captions in the second phase that belong to another image."""
    scored: int = 600
    """Number of held-out prompts that score the result."""


TINY = TrainingSpec(
    autoencoder=replace(AutoencoderSettings(), cell_steps=2, image_steps=1, batch=8),
    transformer=replace(FlowSettings(), layers=2, heads=2, batch=8),
    true_images=64,
    faulty_images=64,
    true=Cycle(2, warmup=1),
    faulty=(Cycle(2, decay=0.5),),
    scored=6,
)
"""A run of a few seconds, to test the code."""


def run(spec: TrainingSpec, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its mean score per task on held-out prompts."""
    autoencoder = train_autoencoder(spec.autoencoder, seed, progress)
    shift, scale = latent_statistics(autoencoder, seed)
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    tokenizer, flow = build_tokenizer(), spec.transformer
    trainer = new_trainer(lambda: TextToImage(tokenizer, flow), flow, seed)
    true = build_bank(spec.true_images, {}, autoencoder, tokenizer, seed)
    train_phase(trainer, "true captions", spec.true, captioned(true, flow), progress, half=True)
    faulty = build_bank(spec.faulty_images, FAULT_RATES, autoencoder, tokenizer, seed + 1)
    for cycle in spec.faulty:
        draw = captioned(faulty, flow, spec.mismatched_share)
        train_phase(trainer, "faulty captions", cycle, draw, progress, half=True)
    pipeline = assemble(trainer.average, autoencoder, tokenizer)
    save(pipeline, out)
    return score(pipeline, prompts("heldout", spec.scored))
