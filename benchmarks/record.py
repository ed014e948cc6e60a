"""Measurements of the suite: a JSON file, from which the page and its figures are made."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

__all__ = ["load", "machine", "save", "with_part", "write"]


def machine() -> dict[str, Any]:
    """Return the date, the processor and the version of torch."""
    return {
        "date": date.today().isoformat(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__.split("+")[0],
    }


def load(path: Path) -> dict[str, Any]:
    """Read the measurements by part; empty if there is no file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def save(path: Path, part: str, measured: Any) -> dict[str, Any]:
    """Replace the measurements of a part; returns the complete record."""
    record = with_part(path, part, measured)
    write(path, record)
    return record


def with_part(path: Path, part: str, measured: Any) -> dict[str, Any]:
    """Return the record of a file with other measurements of a part, as it would be read; the file stays as it is."""
    record = load(path)
    record[part] = {"machine": machine(), "measured": _plain(measured)}
    found: dict[str, Any] = json.loads(json.dumps(_rounded(record)))
    return found


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a complete record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _rounded(value: Any) -> Any:
    """Round floats to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
