"""Whether a judge is the published one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LABEL", "judge_defaults", "other_judge"]

LABEL = "judge"
"""The label of the judge in scores and diagnostics."""


def judge_defaults(use: str) -> dict[str, Any]:
    """Return the options of dgpo-judge's reward that these suites require; none for another reward."""
    return {"form": "soft-tifa"} if use == "judge" else {}


def other_judge(judge: Mapping[str, Any], published: str) -> list[str]:
    """Return why a judge is not the published model; empty if it is.

    What the server loaded (`root`) counts, if it says so, because it may serve it under any name (`model`).
    Directories and organizations are ignored.
    """
    model = judge.get("model") or judge["options"].get("model")
    root = judge.get("root")
    loaded = root if isinstance(root, str) and root else model
    reasons = []
    if not isinstance(loaded, str):
        reasons.append(f"the judge {judge['use']} does not name its model, the published one is {published}")
    elif _repository(loaded) != _repository(published):
        served = f", served as {model}" if isinstance(model, str) and model != loaded else ""
        reasons.append(f"the judge is {loaded}{served}, the published one is {published}")
    if judge["options"].get("template") is not None:
        reasons.append("the judge is asked with another template than the published one")
    return reasons


def _repository(name: str) -> str:
    """Return the last part of a path or repository; of a directory of the Hub's cache, that of the repository."""
    parts = name.rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == "snapshots":  # models--OWNER--NAME/snapshots/COMMIT
        return parts[-3].rpartition("--")[2]
    return parts[-1]
