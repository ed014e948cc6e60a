"""Trainer of all worlds: a text-conditional flow model, its moving average and its optimizer.

Flow matching on correct captions teaches the meaning of the words. A second phase uses partly wrong captions, like
captions from the web: the model then samples from a mixture, which preference training can sharpen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Cycle", "FlowSettings", "Progress", "Trainer", "flow_loss", "new_trainer", "train_phase"]

Progress = Callable[[str, int, int, float], None]
"""(phase, step, steps, loss)"""
Draw = Callable[[int, torch.Generator], tuple[Tensor, tuple[Tensor, ...]]]
"""(count, generator) -> latents [count, C, ...], and the model's conditioning arguments after the time."""
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Size of the transformer, and settings of its optimizer; `batch` is in samples."""

    layers: int = 5
    heads: int = 4
    head_width: int = 32
    batch: int = 128
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    empty_share: float = 0.08
    """Fraction of captions replaced by the empty prompt, for classifier-free guidance."""
    train_shift: float = 2.0
    """Times are shift u / (1 + (shift - 1) u), u uniform: more at high noise, which determines the content."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """A learning rate schedule: linear warm-up over `warmup` steps to lr_scale times the base rate, and cosine decay to
    0 over the last fraction `decay` of the steps."""

    steps: int
    warmup: int = 0
    decay: float = 0.0
    lr_scale: float = 1.0


@dataclass(slots=True)
class Trainer(Generic[Model]):
    """Model, moving average and optimizer, kept across phases."""

    model: Model
    average: Model
    settings: FlowSettings
    generator: torch.Generator
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, betas=(0.9, 0.98), fused=True)


def new_trainer(build: Callable[[], Model], settings: FlowSettings, seed: int) -> Trainer[Model]:
    """Return a trainer of a new model from `build`."""
    torch.manual_seed(seed)
    model = build()
    average = build().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    return Trainer(model, average, settings, torch.Generator().manual_seed(seed + 1))


def learning_rate(cycle: Cycle, step: int, base: float) -> float:
    """Return the learning rate: linear warm-up, constant, then cosine decay to zero."""
    rate = base * cycle.lr_scale * min(1.0, (step + 1) / max(cycle.warmup, 1))
    falling = cycle.decay * cycle.steps
    left = cycle.steps - step
    return rate if left > falling else rate * 0.5 * (1 - math.cos(math.pi * left / falling))


def flow_loss(
    model: nn.Module, x0: Tensor, conditioning: Sequence[Tensor], shift: float, generator: torch.Generator
) -> Tensor:
    """Return the mean squared error of the velocity, a scalar; times are stratified over the batch."""
    u = (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1.0
    sigma = shift * u / (1 + (shift - 1) * u)
    noise = torch.randn(x0.shape, generator=generator)
    time = sigma.view(-1, *(1,) * (x0.ndim - 1))
    velocity: Tensor = model((1 - time) * x0 + time * noise, sigma, *conditioning)
    return (velocity.float() - (noise - x0)).square().mean()


def train_phase(
    trainer: Trainer[Model], name: str, cycle: Cycle, draw: Draw, progress: Progress, *, half: bool = False
) -> None:
    """Run one phase; `half` enables autocast to bfloat16. The result is the moving average, which is restarted."""
    settings, generator = trainer.settings, trainer.generator
    trained, averaged = list(trainer.model.parameters()), list(trainer.average.parameters())
    for step in range(cycle.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate(cycle, step, settings.lr)
        x0, conditioning = draw(settings.batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = flow_loss(trainer.model, x0, conditioning, settings.train_shift, generator)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        trainer.optimizer.step()
        average_into(averaged, trained, min(settings.ema, (step + 1) / (step + 10)))
        progress(name, step + 1, cycle.steps, float(loss.detach()))


@torch.no_grad()
def average_into(average: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * values, in place."""
    torch._foreach_lerp_(list(average), list(values), 1 - decay)
