"""A model's configuration files, and what in them says that its weights are quantized."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_schemas.text import clean, error_text

__all__ = ["is_pointer", "quantized", "read_json", "refuse_quantized"]

LARGEST = 32 * 2**20
"""Bytes of a configuration."""
POINTER = b"version https://git-lfs"
KEYS = ("quantization_config", "compression_config")


def is_pointer(beginning: bytes) -> bool:
    """Whether a file's first bytes are those of git-lfs's stand-in for the file itself."""
    return beginning.startswith(POINTER)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """An object from a JSON file, whatever editor wrote it. Raises UserError for one that cannot be read."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write into it
        raise UserError(f"{where}: {path} is no file")
    try:
        content = _bytes(path)
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise UserError(f"{where}: {path} has {os.path.getsize(path)} bytes: it is no configuration")
    if not content:
        raise UserError(f"{where}: {path} is empty: download it again")
    if is_pointer(content):
        raise UserError(f"{where}: {path} is a pointer of git-lfs, not the file: run `git lfs pull` beside it")
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        said = "too many brackets within each other" if isinstance(error, RecursionError) else error_text(error, 200)
        raise UserError(f"{where}: {path} is no JSON: {said}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path} holds no JSON object, {{...}}, but {type(found).__name__}")
    return found


def _bytes(path: Path) -> bytes | None:
    """None if there are too many."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    return content if len(content) <= LARGEST else None


def refuse_quantized(config: Mapping[str, Any], path: Path, where: str) -> None:
    """Raise UserError if a configuration, read from `path`, says that the weights beside it are quantized."""
    key = next((key for key in KEYS if config.get(key)), None)
    if key is not None:
        raise quantized(f"{where}: {path}: {key} says {_method(config[key])}")


def quantized(what: str) -> UserError:
    """What to raise for quantized weights; `what` says which and how."""
    return UserError(
        f"{what}: the model is quantized, and neither training on nor sampling from quantized weights is supported; "
        "take the original weights (float32, bfloat16 or float16) instead"
    )


def _method(section: Any) -> str:
    """How, in the words of the section."""
    if not isinstance(section, Mapping):
        return clean(str(section), 100)
    method = section.get("quant_method") or section.get("quant_type") or section.get("quant_algo") or "no method"
    bits = next((f"{n} bit" for n in (4, 8) if section.get(f"load_in_{n}bit") or section.get(f"_load_in_{n}bit")), None)
    more = [bits, *(section.get(name) for name in ("bnb_4bit_quant_type", "weights_dtype", "weights", "quant_type"))]
    shown = ", ".join(one for one in dict.fromkeys(x for x in more if isinstance(x, str)) if one and one != method)
    return clean(f"{method}{f' ({shown})' if shown else ''}", 200)
