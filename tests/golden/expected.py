"""Differences that are meant: of what, and why, with the subject of the commit that makes them.

    Allowed("*/metrics.jsonl", "*.passes", "An iteration says how many passes it took: a new field")
    Allowed("*/config.yaml", "rollout.shift", "Grid and shift are two settings", run="video*")

`where` is a tensor's name, or a key (in a .jsonl behind the number of its line: `*.kl`); `run` is a run of runs.py.
"""

from __future__ import annotations

from tests.golden.compare import Allowed

__all__ = ["ALLOWED"]

ONE_BASE = "DiffusersBackbone: one base for diffusers models; sd3 and wan are a layout and what only they do"

SCHEDULES = "A model says how its times are spaced, where its noise begins and what its errors weigh"

ALLOWED: tuple[Allowed, ...] = (
    Allowed("*/config.yaml", "backbone.options", f"Options of every diffusers model come first: {ONE_BASE}"),
    *(
        Allowed("*/config.yaml", "backbone.options.offload_text", f"wan has the same options: {ONE_BASE}", run=run)
        for run in ("wan*", "video*")
    ),
    Allowed(
        "*/plain/weights.safetensors",
        "metadata.format",
        "`save_weights` writes it, as peft and transformers do: A contract of adapters, and a backbone that has one",
        run="third-party-full",
    ),
    Allowed("*/config.yaml", "timesteps.t_max", f"1.0 became null, the largest time that the model knows: {SCHEDULES}"),
    Allowed("*/run.json", "times*", f"A run says which times it uses, a new field: {SCHEDULES}"),
)
