"""Reading: a file as a `Document`, of the kind that its command reads. Files of another kind are told of as such, not
key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_schemas.loading import Document, load_yaml
from dgpo_schemas.problems import ConfigError, Problem

__all__ = ["read"]

KINDS = {
    "run": ("a run file", "dgpo train", ("run", "backbone", "prompts", "rewards")),
    "ablation": ("an ablation file", "dgpo ablate", ("base", "axes")),
    "service": ("the file of a reward service", "dgpo serve", ("host", "port", "queue", "limits", "batching")),
}
"""What files are called, the command that reads them, and keys that are of this kind alone."""


def read(path: str | Path, kind: str) -> Document:
    """The file. Raises ConfigError like `load_yaml`, and for one that has no key of its kind, but keys of another."""
    document = load_yaml(path)
    wanted, _, _ = KINDS[kind]
    if _is(kind, document.data):
        return document
    for other, (what, command, _) in KINDS.items():
        if _is(other, document.data):
            message = f"this is {what}, which `{command}` reads; here {wanted} is expected"
            raise ConfigError([Problem(document.source, "", message)])
    return document


def _is(kind: str, data: Mapping[str, Any]) -> bool:
    """Whether a file's keys are of this kind: of an ablation, `reward` is a name; a service's may be all there is."""
    own = any(key in data for key in KINDS[kind][2])
    return own or (kind == "service" and isinstance(data.get("reward"), dict))
