"""Training of the checkpoint of moving shapes; run it with `python -m dgpo_miniature.train --world moving`.

Trains the autoencoder, encodes clips, then trains the transformer with its text encoder, first on correct captions,
then on partly wrong captions. One seed determines all randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dgpo_miniature.moving.autoencoder import AutoencoderSettings, Stage, train_autoencoder
from dgpo_miniature.moving.checkpoint import assemble
from dgpo_miniature.moving.data import Captioner, build_bank
from dgpo_miniature.moving.prompts import prompts
from dgpo_miniature.moving.score import score
from dgpo_miniature.moving.text import build_tokenizer
from dgpo_miniature.moving.transformer import TextToVideo, captioned
from dgpo_miniature.training.checkpoint import save
from dgpo_miniature.training.flow import Cycle, FlowSettings, Progress, new_trainer, train_phase

__all__ = ["TINY", "TrainingSpec", "run"]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """Settings of the training; with the seed, they determine the checkpoint."""

    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    clips: int = 9_600
    true: Cycle = field(default_factory=lambda: Cycle(3500, warmup=100, decay=0.4))
    faulty: Cycle = field(default_factory=lambda: Cycle(900, warmup=50, decay=0.7))
    fault_rate: float = 0.42
    """Fraction of captions in the second phase that are wrong in one word."""
    scored: int = 240
    """Number of held-out prompts that score the result."""


TINY = TrainingSpec(
    autoencoder=AutoencoderSettings(
        Stage(2, 4, foreground=10.0), Stage(2, 2, foreground=4.0), Stage(2, 2, foreground=1.0)
    ),
    flow=replace(FlowSettings(), layers=2, heads=2, batch=8),
    clips=48,
    true=Cycle(2, warmup=1),
    faulty=Cycle(2, decay=0.3),
    fault_rate=0.5,
    scored=6,
)
"""A run of a few seconds, to test the code."""


def run(spec: TrainingSpec, out: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Train, write the pipeline to `out`, and return its score on held-out prompts."""
    autoencoder = train_autoencoder(spec.autoencoder, seed, progress)
    tokenizer, flow = build_tokenizer(), spec.flow
    bank = build_bank(spec.clips, autoencoder, seed)
    trainer = new_trainer(lambda: TextToVideo(tokenizer, flow), flow, seed)
    captioner = Captioner(tokenizer, seed)
    train_phase(trainer, "true captions", spec.true, captioned(bank, captioner, flow), progress)
    faulty = captioned(bank, captioner, flow, spec.fault_rate)
    train_phase(trainer, "faulty captions", spec.faulty, faulty, progress)
    pipeline = assemble(trainer.average, autoencoder, tokenizer)
    save(pipeline, out)
    return score(pipeline, prompts("heldout", spec.scored))
