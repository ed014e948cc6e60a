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
    """Return why a judge is not the published model; empty if it is. Directories and organizations in the name of a
    served model are ignored."""
    model = judge.get("model") or judge["options"].get("model")
    reasons = []
    if not isinstance(model, str):
        reasons.append(f"the judge {judge['use']} does not name its model, the published one is {published}")
    elif model.rstrip("/").rpartition("/")[2] != published.rpartition("/")[2]:
        reasons.append(f"the judge is {model}, the published one is {published}")
    if judge["options"].get("template") is not None:
        reasons.append("the judge is asked with another template than the published one")
    return reasons
