"""The effect of the decoder of rollouts on rewards: the same latents, decoded by it and by the full decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.distributed.comparing import Layout
from dgpo_core.draws import Draws
from dgpo_core.training.memory import decoded_media
from dgpo_core.training.reward_building import training_scorer

if TYPE_CHECKING:
    from dgpo_core.api.target import Target
    from dgpo_core.types import Prompt

__all__ = ["compare", "lines", "summary"]


def compare(target: Target, prompts: Sequence[Prompt], *, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Draw `count` samples per prompt and score each twice with the rewards of training; `summary` by reward label."""
    engine = target.engine
    prompts = target.checked(prompts, None)
    scorer, draws = training_scorer(engine, prompts), Draws(seed).at("sample")
    rollouts = list(engine.rollout_sampler().sample_groups(prompts, count, draws, target.model))
    found: list[dict[str, Tensor]] = []
    for training in (False, True):
        scorer.expect(Layout(count, draws, [range(count * len(prompts))]))
        for rollout in rollouts:
            media = decoded_media(engine.backbone, rollout, training=training)
            scorer.submit(media, rollout.prompts, samples=rollout.samples)
        values = scorer.collect().values
        order = torch.tensor([sample for rollout in rollouts for sample in rollout.samples]).argsort()
        found.append({label: value[order].reshape(len(prompts), count) for label, value in values.items()})
    full, cheap = found
    return {label: summary(full[label], cheap[label]) for label in full}


def summary(full: Tensor, cheap: Tensor) -> dict[str, Any]:
    """Compare scores [groups, samples] of the same latents; nan, a missing score, leaves its sample out.

    full, rollouts: mean scores; difference: mean of rollouts - full; correlation: Pearson's, of deviations from the
    group means, which advantages are made of; same_sign: fraction of samples on the same side of their group's mean;
    None where scores do not differ within groups.
    """
    full, cheap = full.double(), cheap.double()
    scored = ~(full.isnan() | cheap.isnan())
    full, cheap = (x.where(scored, torch.nan) for x in (full, cheap))
    a, b = ((x - x.nanmean(1, keepdim=True))[scored] for x in (full, cheap))
    norm = a.norm() * b.norm()
    varied = bool(norm > 0)
    return {
        "samples": int(scored.sum()),
        "full": _number(full[scored].mean()),
        "rollouts": _number(cheap[scored].mean()),
        "difference": _number((cheap - full)[scored].mean()),
        "correlation": float((a * b).sum() / norm) if varied else None,
        "same_sign": float((a.sign() == b.sign()).double().mean()) if varied else None,
    }


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return a Markdown table, a row per reward."""
    rows = ["| reward | full decoder | tiny decoder | difference | correlation in groups | same sign |"]
    rows.append("|---|---|---|---|---|---|")
    for label, one in found.items():
        numbers = [_shown(one[key], ".4f") for key in ("full", "rollouts")]
        numbers += [_shown(one["difference"], "+.4f"), _shown(one["correlation"], ".3f")]
        rows.append(f"| {label} | {' | '.join([*numbers, _shown(one['same_sign'], '.0%')])} |")
    return rows


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
