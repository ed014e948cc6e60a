"""Trains the miniature's text encoder and transformer jointly by flow matching.

First on captions that are all true, which teaches what the words mean; then on captions part of which are wrong, as
captions from the web are: the model then draws from the mixture it was shown, and preference training has something
to sharpen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5TokenizerFast

from dgpo_video.miniature.training.autoencoder import CHANNELS, Progress
from dgpo_video.miniature.training.data import Bank, Captioner
from dgpo_video.miniature.training.text import WIDTH, build_text_encoder

__all__ = ["Cycle", "FlowSettings", "TextToVideo", "Trainer", "new_trainer", "train_phase"]


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Shape of the transformer and its optimiser; batch in clips."""

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
    """Steps with captions of which a share is wrong; the rate rises over `warmup` steps and falls to 0 over the last
    `decay` share of them."""

    steps: int
    fault_rate: float = 0.0
    warmup: int = 0
    decay: float = 0.3


class TextToVideo(nn.Module):
    """The trained parts in one module."""

    def __init__(self, tokenizer: T5TokenizerFast, settings: FlowSettings) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        width = settings.heads * settings.head_width
        # Patches of 4x4 latents, 8 tokens a clip: a quarter of the cost of patches of 2x2.
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 4, 4),
            num_attention_heads=settings.heads,
            attention_head_dim=settings.head_width,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=WIDTH,
            freq_dim=64,
            ffn_dim=4 * width,
            num_layers=settings.layers,
            rope_max_seq_len=32,
        )

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens and mask [B, T] to embeddings [B, T, WIDTH], zero where padded, as WanPipeline has them."""
        hidden: Tensor = self.text_encoder(tokens, mask).last_hidden_state
        return hidden * mask[..., None]

    def forward(self, x_sigma: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Velocity [B, C, f, h, w] at x_sigma of the same shape, sigma [B] in [0, 1]."""
        velocity: Tensor = self.transformer(
            hidden_states=x_sigma,
            timestep=1000.0 * sigma,
            encoder_hidden_states=self.encode(tokens, mask),
            return_dict=False,
        )[0]
        return velocity


@dataclass(slots=True)
class Trainer:
    """Model, its moving average and optimiser, carried from phase to phase."""

    model: TextToVideo
    average: TextToVideo
    settings: FlowSettings
    captioner: Captioner
    generator: torch.Generator
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, betas=(0.9, 0.98), fused=True)


def new_trainer(tokenizer: T5TokenizerFast, settings: FlowSettings, seed: int) -> Trainer:
    """A trainer with fresh weights."""
    torch.manual_seed(seed)
    model = TextToVideo(tokenizer, settings)
    average = TextToVideo(tokenizer, settings).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    return Trainer(model, average, settings, Captioner(tokenizer, seed), torch.Generator().manual_seed(seed + 1))


def train_phase(trainer: Trainer, name: str, bank: Bank, cycle: Cycle, progress: Progress) -> None:
    """Run one phase; the moving average `trainer.average`, which starts anew, is the result."""
    settings, generator = trainer.settings, trainer.generator
    trained: list[Tensor] = list(trainer.model.parameters())
    averaged: list[Tensor] = list(trainer.average.parameters())
    for step in range(cycle.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate(cycle, step, settings.lr)
        index = torch.randint(len(bank.latents), (settings.batch,), generator=generator)
        tokens, mask = trainer.captioner(bank.content[index], cycle.fault_rate, settings.empty_share)
        loss = flow_loss(trainer.model, bank.latents[index], tokens, mask, settings.train_shift, generator)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        trainer.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, trained, 1 - min(settings.ema, (step + 1) / (step + 10)))
        progress(name, step + 1, cycle.steps, float(loss.detach()))


def learning_rate(cycle: Cycle, step: int, base: float) -> float:
    """Linear warm-up, constant, then a cosine fall to zero."""
    rate = base * min(1.0, (step + 1) / max(cycle.warmup, 1))
    falling, left = cycle.decay * cycle.steps, cycle.steps - step
    return rate if left > falling else rate * 0.5 * (1 - math.cos(math.pi * left / falling))


def flow_loss(
    model: TextToVideo, x0: Tensor, tokens: Tensor, mask: Tensor, shift: float, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity, a scalar; times are stratified over the batch."""
    u = (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1.0
    sigma = shift * u / (1 + (shift - 1) * u)
    noise = torch.randn(x0.shape, generator=generator)
    at = sigma.view(-1, 1, 1, 1, 1)
    velocity: Tensor = model((1 - at) * x0 + at * noise, sigma, tokens, mask)
    return (velocity - (noise - x0)).square().mean()
