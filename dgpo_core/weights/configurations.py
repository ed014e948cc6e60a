"""Read a model's configuration files and detect quantized weights."""

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
"""Maximum size of a configuration file in bytes."""
POINTER = b"version https://git-lfs"
KEYS = ("quantization_config", "compression_config")


def is_pointer(beginning: bytes) -> bool:
    """Return whether a file that begins with these bytes is a git-lfs pointer."""
    return beginning.startswith(POINTER)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON object from a file, with or without a byte order mark. Raises UserError if it cannot be read."""
    if path.exists() and not path.is_file():  # opening a pipe would block until a writer connects
        raise UserError(f"{where}: {path} is not a regular file")
    try:
        content = _bytes(path)
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise UserError(f"{where}: {path} has {os.path.getsize(path)} bytes, too many for a configuration file")
    if not content:
        raise UserError(f"{where}: {path} is empty; download it again")
    if is_pointer(content):
        raise UserError(f"{where}: {path} is a git-lfs pointer, not the file; run `git lfs pull` in its directory")
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error_text(error, 200)
        raise UserError(f"{where}: {path} is not valid JSON: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path} must contain a JSON object, {{...}}, not {type(found).__name__}")
    return found


def _bytes(path: Path) -> bytes | None:
    """Return the content of a file, or None if it is larger than LARGEST."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    return content if len(content) <= LARGEST else None


def refuse_quantized(config: Mapping[str, Any], path: Path, where: str) -> None:
    """Raise UserError if a configuration, read from `path`, declares quantized weights."""
    key = next((key for key in KEYS if config.get(key)), None)
    if key is not None:
        raise quantized(f"{where}: {path}: {key} is set to {_method(config[key])}")


def quantized(what: str) -> UserError:
    """Return the UserError for quantized weights. what: the start of the message, naming the file and the method."""
    return UserError(
        f"{what}: the model is quantized, and neither training on nor sampling from quantized weights is supported; "
        "use the original weights (float32, bfloat16 or float16) instead"
    )


def _method(section: Any) -> str:
    """Describe the quantization method that a configuration section declares."""
    if not isinstance(section, Mapping):
        return clean(str(section), 100)
    method = section.get("quant_method") or section.get("quant_type") or section.get("quant_algo") or "unknown method"
    bits = next((f"{n} bit" for n in (4, 8) if section.get(f"load_in_{n}bit") or section.get(f"_load_in_{n}bit")), None)
    more = [bits, *(section.get(name) for name in ("bnb_4bit_quant_type", "weights_dtype", "weights", "quant_type"))]
    shown = ", ".join(one for one in dict.fromkeys(x for x in more if isinstance(x, str)) if one and one != method)
    return clean(f"{method}{f' ({shown})' if shown else ''}", 200)
