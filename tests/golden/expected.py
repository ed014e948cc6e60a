"""Differences that are meant: of what, and why, with the subject of the commit that makes them.

    Allowed("*/metrics.jsonl", "*.passes", "An iteration says how many passes it took: a new field")
    Allowed("*/config.yaml", "rollout.shift", "Grid and shift are two settings", run="video*")

`where` is a tensor's name, or a key (in a .jsonl behind the number of its line: `*.kl`); `run` is a run of runs.py.
"""

from __future__ import annotations

from tests.golden.compare import Allowed

__all__ = ["ALLOWED"]

ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "*/manifest.json", "format_version", "The changelog of 0.2.0: tensors and files of checkpoints have other names"
    ),
)
