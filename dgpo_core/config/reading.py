"""Reading: a file as a `Document`, of the kind that its command reads. Files of another kind are told of as such, not
key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo_core.config.migration.refusing import refuse
from dgpo_schemas.loading import Document, load_yaml
from dgpo_schemas.problems import ConfigError, Problem

__all__ = ["kind_of", "read"]

KINDS = {
    "run": ("a run file", "dgpo train", ("run", "backbone", "prompts", "rewards")),
    "ablation": ("an ablation file", "dgpo ablate", ("base", "axes")),
    "service": ("the file of a reward service", "dgpo serve", ("host", "port", "queue", "limits", "batching")),
}
"""What files are called, the command that reads them, and keys that are of this kind alone."""


def read(path: str | Path, kind: str, overrides: Sequence[str] = ()) -> Document:
    """Read a file of a kind, to which settings of the command line will be applied.

    Raises ConfigError as `load_yaml` does, for a file of another kind, and for names of an earlier version of dgpo in
    the file and in the settings (`refuse`); UserError for the config.yaml of a run that an earlier version wrote.
    """
    document = load_yaml(path)
    found = kind_of(document) or kind
    if found != kind and not _is(kind, document.data):
        what, command, _ = KINDS[found]
        message = f"this is {what}, which `{command}` reads; here {KINDS[kind][0]} is expected"
        raise ConfigError([Problem(document.source, "", message)])
    refuse(document, kind, overrides)
    return document


def kind_of(document: Document) -> str | None:
    """The kind of a file, a key of `KINDS`; None if it has no key that belongs to one kind alone, as a preset may."""
    return next((kind for kind in KINDS if _is(kind, document.data)), None)


def _is(kind: str, data: Mapping[str, Any]) -> bool:
    """Whether a file's keys are of this kind: of an ablation, `reward` is a name; a service's may be all there is."""
    own = any(key in data for key in KINDS[kind][2])
    return own or (kind == "service" and isinstance(data.get("reward"), dict))
