"""Which file is for which command: those of another kind are told of as such, not key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo_schemas.loading import Document
from dgpo_schemas.problems import ConfigError, Problem

__all__ = ["check_kind"]

KINDS = {
    "run": ("a run file", "dgpo train", ("run", "backbone", "prompts", "rewards")),
    "ablation": ("an ablation file", "dgpo ablate", ("base", "axes")),
    "service": ("the file of a reward service", "dgpo serve", ("host", "port", "queue", "limits", "batching")),
}
"""What files are called, the command that reads them, and keys that are of this kind alone."""


def check_kind(document: Document, kind: str) -> None:
    """Raise ConfigError if a document has no key of its kind, and keys of another one."""
    wanted, _, _ = KINDS[kind]
    if _is(kind, document.data):
        return
    for other, (what, command, _) in KINDS.items():
        if _is(other, document.data):
            message = f"this is {what}, which `{command}` reads; here {wanted} is expected"
            raise ConfigError([Problem(document.source, "", message)])


def _is(kind: str, data: Mapping[str, Any]) -> bool:
    """Whether a file's keys are of this kind: of an ablation, `reward` is a name; a service's may be all there is."""
    own = any(key in data for key in KINDS[kind][2])
    return own or (kind == "service" and isinstance(data.get("reward"), dict))
