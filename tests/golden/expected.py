"""Differences that are meant: of what, and why, with the subject of the commit that makes them.

    Allowed("*/metrics.jsonl", "*.passes", "An iteration says how many passes it took: a new field")
    Allowed("*/config.yaml", "rollout.shift", "Grid and shift are two settings", run="video*")

`where` is a tensor's name, or a key (in a .jsonl behind the number of its line: `*.kl`); `run` is a run of runs.py.
"""

from __future__ import annotations

from tests.golden.compare import Allowed

__all__ = ["ALLOWED"]

NEW = (
    "run.init_from", "backbone.lora.init", "backbone.lora.rslora", "backbone.lora.dora", "backbone.cache",
    "backbone.options.quantize", "backbone.options.tiny_decoder", "backbone.options.group_offload",
    "backbone.options.rollout_cache", "rollout.guidance_interval", "evaluation.guidance_interval", "run.deterministic",
    "run.reward_ranks", "stop.in_a_row", "precision.adapter", "precision.norms", "evaluation.monitors.wording",
    "optimizer.passes", "objective.ema_fast.per", "objective.reset.every", "objective.reset.kl",
    "timesteps.options.weights", "timesteps.options.weights_power",
    "rewards.*.transform", "evaluation.rewards.*.transform", "evaluation.monitors.rewards.*.transform", "logging.tags",
    *(f"prompts.{split}.*.{key}" for split in ("train", "heldout") for key in ("aggregation", "max_missing")),
)  # fmt: skip
"""Settings that run files did not have."""

ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "*/manifest.json", "format_version", "The changelog of 0.2.0: tensors and files of checkpoints have other names"
    ),
    *(
        Allowed("*/config.yaml", key, "The changelog of 0.2.0: new settings, at defaults that change nothing")
        for key in NEW
    ),
    *(
        Allowed("*/metrics.jsonl", f"*.sources.*.{key}", "A source says more of itself: new fields")
        for key in ("rewards*", "sigmoid", "loss_weight")
    ),
    Allowed("*/evaluation.json", "*.text", "Explanations of rewards in plain English"),
)
