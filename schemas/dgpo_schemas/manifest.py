"""Manifest and clock of a checkpoint. Both contain a digest of their own content."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from dgpo_schemas.base import StrictModel
from dgpo_schemas.problems import ConfigError, Problem, dotted, explain, show
from dgpo_schemas.sealing import seal_of, sealed

__all__ = [
    "FORMAT_VERSION",
    "CheckpointClock",
    "CheckpointManifest",
    "DamagedError",
    "FileEntry",
    "read_clock",
    "read_manifest",
    "sealed_json",
]

M = TypeVar("M", bound=BaseModel)

FORMAT_VERSION = 3
"""Versions 1 and 2 are those of dgpo 0.1, with other names of tensors and files."""

SHA256 = r"^[0-9a-f]{64}$"


class FileEntry(StrictModel):
    """Size and digest of a file, or of the first part of a file that has grown since."""

    sha256: str = Field(pattern=SHA256, description="SHA-256 of the content.")
    bytes: int = Field(ge=0, description="Size in bytes.")


class CheckpointManifest(StrictModel):
    """manifest.json of a checkpoint directory."""

    format_version: int = Field(description="Version of the checkpoint's layout.")
    iteration: int = Field(ge=0, description="Number of finished iterations.")
    updates: int = Field(ge=0, description="Number of optimizer updates.")
    dgpo_version: str = Field(description="Version of dgpo that wrote the checkpoint.")
    files: dict[str, FileEntry] = Field(description="Files of the checkpoint with their digests.")
    timesteps: dict[str, Any] = Field(description="State of the timestep policy.")
    best_iteration: int | None = Field(description="Iteration of the best evaluation so far.")
    best_score: float | None = Field(description="Score of the best evaluation so far.")
    counters: dict[str, int] = Field(description="Counts that a resume goes on with.")
    logs: dict[str, FileEntry] = Field(description="metrics.jsonl and evaluations.jsonl as they were then.")
    sha256: str | None = Field(
        default=None,
        pattern=SHA256,
        description="SHA-256 of everything else here as JSON with sorted keys and no blanks.",
    )


class CheckpointClock(StrictModel):
    """clock.json of a checkpoint directory: measured times, kept out of the manifest to make it reproducible."""

    iteration: int = Field(ge=0, description="Number of finished iterations.")
    trained_seconds: float = Field(
        ge=0, description="Time of those iterations in seconds, excluding evaluation and saving."
    )
    timings: FileEntry = Field(description="timings.jsonl at the time of the checkpoint.")
    sha256: str = Field(pattern=SHA256, description="SHA-256 of all other keys, as in manifest.json.")


class DamagedError(ValueError):
    """The content of a file is not what was written."""


def sealed_json(data: dict[str, Any]) -> str:
    """Serialize a manifest or clock, with its digest."""
    return json.dumps(sealed(data), indent=1) + "\n"


def read_manifest(text: str, source: str) -> CheckpointManifest:
    """Parse a manifest.

    Raises ValueError that names `source` for an unknown format version or invalid fields, and DamagedError for text
    that is not JSON or does not match its digest.
    """
    data = _object(text, source)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{source}: unknown checkpoint format version {version!r}; this version of dgpo reads {FORMAT_VERSION}"
        )
    _check_seal(data, source)
    return _valid(CheckpointManifest, data, source)


def read_clock(text: str, source: str) -> CheckpointClock:
    """Parse a clock. Raises DamagedError that names `source` if the content does not match the digest."""
    data = _object(text, source)
    _check_seal(data, source)
    return _valid(CheckpointClock, data, source)


def _object(text: str, source: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{source}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DamagedError(f"{source}: must be an object, not {show(data)}")
    return data


def _check_seal(data: dict[str, Any], source: str) -> None:
    found = seal_of(data)
    if found != "whole":
        why = "contains no digest" if found == "none" else "its content differs from what was saved (SHA-256)"
        raise DamagedError(f"{source}: {why}")


def _valid(model: type[M], data: dict[str, Any], source: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = explain(model, data, error)
        raise ConfigError([Problem(source, dotted(path), message) for path, message in found]) from None
