"""What stands beside a checkpoint's tensors: its manifest, and its clock. Both carry a digest of themselves."""

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
    """A file as it was written, or the beginning of one that has grown since."""

    sha256: str = Field(pattern=SHA256, description="SHA-256 of its content.")
    bytes: int = Field(ge=0, description="Its size.")


class CheckpointManifest(StrictModel):
    """manifest.json of a checkpoint directory."""

    format_version: int = Field(description="Version of the checkpoint's layout.")
    iteration: int = Field(ge=0, description="Iterations finished.")
    updates: int = Field(ge=0, description="Optimizer updates done.")
    dgpo_version: str = Field(description="Version that wrote it.")
    files: dict[str, FileEntry] = Field(description="Its files with their digests.")
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
    """clock.json of a checkpoint directory: what is another time each time, and so not in the manifest."""

    iteration: int = Field(ge=0, description="Iterations finished.")
    trained_seconds: float = Field(ge=0, description="Seconds of those iterations, without evaluations and saving.")
    timings: FileEntry = Field(description="timings.jsonl as it was then.")
    sha256: str = Field(pattern=SHA256, description="SHA-256 of everything else here, as in manifest.json.")


class DamagedError(ValueError):
    """What was read is not what was written."""


def sealed_json(data: dict[str, Any]) -> str:
    """A manifest's or a clock's text, its digest included."""
    return json.dumps(sealed(data), indent=1) + "\n"


def read_manifest(text: str, source: str) -> CheckpointManifest:
    """Parse a manifest. Raises ValueError naming `source`: an unknown format version, wrong fields; DamagedError if it
    is not JSON or not what its digest says."""
    data = _object(text, source)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{source}: checkpoint format version {version!r} is unknown; this dgpo reads version {FORMAT_VERSION}"
        )
    _check_seal(data, source)
    return _valid(CheckpointManifest, data, source)


def read_clock(text: str, source: str) -> CheckpointClock:
    """Parse a clock. Raises DamagedError naming `source` for one that is not what its digest says."""
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
        why = "has no digest of itself" if found == "none" else "its content differs from what was saved (SHA-256)"
        raise DamagedError(f"{source}: {why}")


def _valid(model: type[M], data: dict[str, Any], source: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = explain(model, data, error)
        raise ConfigError([Problem(source, dotted(path), message) for path, message in found]) from None
