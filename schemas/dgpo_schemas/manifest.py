"""The manifest of a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from dgpo_schemas.base import StrictModel
from dgpo_schemas.problems import ConfigError, Problem, dotted, explain, show

__all__ = ["FORMAT_VERSION", "CheckpointManifest", "FileEntry", "read_manifest"]

FORMAT_VERSION = 1


class FileEntry(StrictModel):
    """A file of a checkpoint as it was written."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its content.")
    bytes: int = Field(ge=0, description="Its size.")


class CheckpointManifest(StrictModel):
    """manifest.json of a checkpoint directory."""

    format_version: int = Field(description="Version of the checkpoint's layout.")
    iteration: int = Field(ge=0, description="Iterations finished.")
    updates: int = Field(ge=0, description="Optimiser updates done.")
    dgpo_version: str = Field(description="Version that wrote it.")
    files: dict[str, FileEntry] = Field(description="Its files with their digests.")
    timesteps: dict[str, Any] = Field(description="State of the timestep policy.")
    best_iteration: int | None = Field(description="Iteration of the best evaluation so far.")
    best_score: float | None = Field(description="Score of the best evaluation so far.")
    counters: dict[str, int] = Field(description="Counts that a resume goes on with.")


def read_manifest(text: str, source: str) -> CheckpointManifest:
    """Parse a manifest. Raises ValueError naming `source`: not JSON, an unknown format version, wrong fields."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{source}: must be an object, not {show(data)}")
    version = data.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ValueError(
            f"{source}: checkpoint format version {version!r} is unknown; this dgpo reads version {FORMAT_VERSION}"
        )
    try:
        return CheckpointManifest.model_validate(data)
    except ValidationError as error:
        found = explain(CheckpointManifest, data, error)
        raise ConfigError([Problem(source, dotted(path), message) for path, message in found]) from None
