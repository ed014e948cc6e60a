"""Find settings for which variants with the same seed do not share prompts and noise, from their run files.

Every random draw of a run has a key: run.seed, the iteration, the purpose, the group and the member. Variants with the
same keys draw the same prompts, initial noise and training noise; only the effects of their weights differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dgpo_lab.ablation.plan import Variant

__all__ = ["unpaired"]

EFFECTS = (
    ("backbone.use", "the backbone differs: latents of another shape take other noise"),
    ("backbone.checkpoint", "the checkpoint differs: the base models are not the same"),
    ("rollout.resolution", "the resolution differs: latents of another shape take other noise"),
    (
        "rollout.group_size",
        "the group size differs: groups share prompts and the noise of their first members, larger ones have more",
    ),
    (
        "rollout.groups",
        "the number of groups differs: prompts come in the same order but in other iterations, and with other noise",
    ),
    ("prompts.train", "the training prompts differ: rollouts are not paired"),
    ("prompts.heldout", "the held-out prompts differ: scores are of other prompts and not paired"),
    ("evaluation.prompts", "the number of held-out prompts differs: scores are not of the same prompts"),
    (
        "evaluation.samples_per_prompt",
        "the samples of a held-out prompt differ: evaluations share the noise of their first samples only",
    ),
    ("evaluation.steps", "the solver steps of evaluations differ: the base model scores differently too"),
    ("evaluation.guidance", "the guidance of evaluations differs: the base model scores differently too"),
    (
        "evaluation.guidance_interval",
        "the guidance interval of evaluations differs: the base model scores differently too",
    ),
    ("rollout.steps", "the solver steps differ: the noise is the same, what the base model makes of it is not"),
    ("rollout.shift", "the shift differs: the noise is the same, what the base model makes of it is not"),
    ("rollout.guidance", "the guidance differs: the noise is the same, what the base model makes of it is not"),
    (
        "rollout.guidance_interval",
        "the guidance interval differs: the noise is the same, what the base model makes of it is not",
    ),
    ("rollout.sampler", "the sampler differs: the initial noise is the same, what the base model makes of it is not"),
    ("timesteps", "the training times differ: their noise is shared where their places in an iteration agree"),
    ("run.device", "the device differs: CUDA draws other numbers from the same key than the CPU and MPS"),
    ("optimizer.updates", "the updates an iteration differ: rollouts stay paired, the optimizer's schedule does not"),
    ("optimizer.passes", "the updates an iteration differ: rollouts stay paired, the optimizer's schedule does not"),
)
"""Run-file keys that break part of the pairing, and how."""


def unpaired(variants: Sequence[Variant]) -> list[str]:
    """Return a sentence for each setting that differs between variants and breaks part of the pairing."""
    found = [dict(_flat(variant.config.model_dump(mode="json"))) for variant in variants]
    keys = dict.fromkeys(key for flat in found for key in flat)
    varied = [key for key in keys if any(flat.get(key) != found[0].get(key) for flat in found)]
    return [
        f"{key}: {effect}." for key, effect in EFFECTS if any(one == key or one.startswith(f"{key}.") for one in varied)
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list) and value:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
