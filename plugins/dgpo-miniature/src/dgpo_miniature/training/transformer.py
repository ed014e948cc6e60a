"""Trains the miniature's text encoders and transformer jointly by flow matching.

First on captions that are all true, which teaches what the words mean; then on captions part of which are wrong, as
captions from the web are: the model then draws from the mixture it was shown, and preference training has something
to sharpen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dgpo_miniature.training.autoencoder import Progress
from dgpo_miniature.training.text import WIDTH, build_text_encoder

__all__ = ["CaptionedLatents", "Cycle", "Phase", "TextToImage", "TransformerSettings", "flow_loss", "train_phase"]


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """Shape of the transformer and its optimiser; batch in pictures."""

    layers: int = 5
    heads: int = 4
    head_width: int = 32
    batch: int = 128
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    empty_share: float = 0.08
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    train_shift: float = 2.0
    """Times are drawn as shift u / (1 + (shift - 1) u), u uniform: more noise, where the content is decided."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """A learning rate's course: over `warmup` steps up to lr_scale times the base rate, and over the last `decay` share
    of the steps down to 0."""

    steps: int
    warmup: int = 0
    decay: float = 0.0
    lr_scale: float = 1.0


class CaptionedLatents(Protocol):
    """What is trained on: latents float32 [N, 4, h, w]; tokens int64 [N, T]; empty int64 [T], of the empty prompt."""

    @property
    def latents(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def empty(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training on one bank."""

    name: str
    bank: CaptionedLatents
    cycle: Cycle
    mismatched_share: float = 0.0
    """Share of captions replaced by another picture's."""


class TextToImage(nn.Module):
    """The trained parts in one module: two text encoders and the transformer."""

    def __init__(self, tokenizer: CLIPTokenizer, settings: TransformerSettings) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.text_encoder_2 = build_text_encoder(tokenizer)
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=settings.layers,
            attention_head_dim=settings.head_width,
            num_attention_heads=settings.heads,
            caption_projection_dim=settings.heads * settings.head_width,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] to (sequence [B, T, 2 WIDTH], pooled [B, 2 WIDTH]), exactly as the pipeline does without T5."""
        sequences, pooled = [], []
        for encoder in (self.text_encoder, self.text_encoder_2):
            out = encoder(tokens, output_hidden_states=True)
            sequences.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        return torch.cat(sequences, dim=-1), torch.cat(pooled, dim=-1)

    def forward(self, x_sigma: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """Velocity [B, 4, h, w] at x_sigma [B, 4, h, w], sigma [B] in [0, 1]; h and w are even, at most 16."""
        sequence, pooled = self.encode(tokens)
        velocity: Tensor = self.transformer(
            hidden_states=x_sigma,
            timestep=1000.0 * sigma,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity


def flow_loss(model: TextToImage, x0: Tensor, tokens: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, a scalar; times are stratified over the batch."""
    u = (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1.0
    sigma = shift * u / (1 + (shift - 1) * u)
    noise = torch.randn(x0.shape, generator=generator)
    at = sigma.view(-1, 1, 1, 1)
    velocity: Tensor = model((1 - at) * x0 + at * noise, sigma, tokens)
    return (velocity.float() - (noise - x0)).square().mean()


@dataclass(slots=True)
class Trainer:
    """Model, its moving average and optimiser, carried from phase to phase."""

    model: TextToImage
    average: TextToImage
    settings: TransformerSettings
    generator: torch.Generator
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, betas=(0.9, 0.98), fused=True)


def new_trainer(tokenizer: CLIPTokenizer, settings: TransformerSettings, seed: int) -> Trainer:
    """A trainer with fresh weights."""
    torch.manual_seed(seed)
    model = TextToImage(tokenizer, settings)
    average = TextToImage(tokenizer, settings).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    return Trainer(model, average, settings, torch.Generator().manual_seed(seed + 1))


def learning_rate(cycle: Cycle, step: int, base: float) -> float:
    """Linear warm-up, constant, then a cosine fall to zero."""
    rate = base * cycle.lr_scale * min(1.0, (step + 1) / max(cycle.warmup, 1))
    falling = cycle.decay * cycle.steps
    left = cycle.steps - step
    return rate if left > falling else rate * 0.5 * (1 - math.cos(math.pi * left / falling))


def train_phase(trainer: Trainer, phase: Phase, progress: Progress) -> None:
    """Run one phase; the moving average `trainer.average`, which starts anew, is the result."""
    settings, bank, generator = trainer.settings, phase.bank, trainer.generator
    trained, averaged = list(trainer.model.parameters()), list(trainer.average.parameters())
    for step in range(phase.cycle.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate(phase.cycle, step, settings.lr)
        index = torch.randint(len(bank.latents), (settings.batch,), generator=generator)
        tokens = bank.tokens[index].clone()
        chance = torch.rand(settings.batch, generator=generator)
        tokens[chance < settings.empty_share] = bank.empty
        mismatched = chance > 1 - phase.mismatched_share
        strangers = torch.randint(len(bank.latents), (settings.batch,), generator=generator)
        tokens[mismatched] = bank.tokens[strangers[mismatched]]
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(trainer.model, bank.latents[index], tokens, settings.train_shift, generator)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        trainer.optimizer.step()
        average_into(averaged, trained, min(settings.ema, (step + 1) / (step + 10)))
        progress(phase.name, step + 1, phase.cycle.steps, float(loss.detach()))


@torch.no_grad()
def average_into(average: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * values, in place."""
    torch._foreach_lerp_(list(average), list(values), 1 - decay)
