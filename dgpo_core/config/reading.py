"""Read a file as a `Document` and check that it has the kind that the command requires."""

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
"""Kinds of files: a description, the command that reads them, and keys that only this kind has."""


def read(path: str | Path, kind: str, overrides: Sequence[str] = ()) -> Document:
    """Read a file of a kind. overrides: settings of the command line that will be applied to it.

    Raises ConfigError like `load_yaml`, for a file of another kind, and for names of an earlier version of dgpo in the
    file or the overrides (`refuse`). Raises UserError for the config.yaml of a run of an earlier version.
    """
    if kind == "run" and (Path(path) / "config.yaml").is_file():
        again = f"`dgpo train {Path(path) / 'config.yaml'} --resume` continues it"
        raise ConfigError([Problem(str(path), "", f"is the directory of a run, not a run file; {again}")])
    document = load_yaml(path)
    found = kind_of(document) or kind
    if found != kind and not _is(kind, document.data):
        what, command, _ = KINDS[found]
        message = f"this is {what}, which `{command}` reads; expected {KINDS[kind][0]}"
        raise ConfigError([Problem(document.source, "", message)])
    refuse(document, kind, overrides)
    return document


def kind_of(document: Document) -> str | None:
    """Return the kind of a file, a key of `KINDS`, or None if it has no key of one kind only, as in a preset."""
    return next((kind for kind in KINDS if _is(kind, document.data)), None)


def _is(kind: str, data: Mapping[str, Any]) -> bool:
    """Return whether a file has keys of this kind. In a service file `reward` is a section, in an ablation a name."""
    own = any(key in data for key in KINDS[kind][2])
    return own or (kind == "service" and isinstance(data.get("reward"), dict))
