"""From the record of a session to the page: only one of a GPU and of published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.page import write_page
from benchmarks.record import with_part, write
from dgpo_core.errors import UserError

__all__ = ["publish", "read"]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)
    what: str
    value: float | int | str
    unit: str = ""
    ideal: float | None = None
    bound: float | None = None
    passed: bool | None = None


class _Step(BaseModel):
    model_config = ConfigDict(strict=True)
    status: str
    seconds: float = Field(allow_inf_nan=False)
    error: str = ""
    rows: list[_Row] = []


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True)
    device: str
    tiny: bool


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)
    seconds: float = Field(allow_inf_nan=False)
    total: float = Field(allow_inf_nan=False)
    settings: _Settings
    steps: dict[str, _Step] = Field(min_length=1)


def publish(path: Path, docs: Path) -> Path:
    """Write performance.md and performance/record.json with the session of a record; returns the page.

    Raises UserError, and writes nothing, unless the file is the record of a session on a GPU with published sizes.
    """
    found = read(path)
    try:
        settings = _Record.model_validate(found).settings
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: this is no record of a session, as --output names one: {where}: {first['msg']}"
        ) from None
    if settings.tiny or settings.device != "cuda":
        kind = "a dry run with tiny models" if settings.tiny else f"a session on {settings.device!r}"
        raise UserError(f"{path}: this is the record of {kind}; the page shows only sessions on a GPU, without --tiny")
    kept = docs / "performance" / "record.json"
    record = with_part(kept, "gpu", found)
    page = write_page(record, docs)  # before the record, which is to stay as it is if this fails
    write(kept, record)
    return page


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: there must be a JSON object in it, not {type(found).__name__}")
    return found
