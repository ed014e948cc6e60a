"""What the rows of a diffusers backbone depend on, as part of the key of embeddings on disk (`backbone.cache`)."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.weights import file_digest, is_sampled
from dgpo_diffusers.checkpoint_check import CHECKPOINT, INDEX
from dgpo_diffusers.family import Family
from dgpo_schemas.changes import declared
from dgpo_schemas.text import error_text

__all__ = ["encoder_identity"]

LIBRARIES = ("diffusers", "transformers", "tokenizers", "sentencepiece", "ftfy", "torchao", "bitsandbytes")
"""Libraries that rows depend on, besides torch; some are optional."""
ELSEWHERE = {"use", "checkpoint", "revision", "train", "lora", "gradient_checkpointing", "compile", "cache", "options"}
"""Keys of the section that do not affect rows, or that affect them through the files and the class."""
SMALL = (".json", ".model", ".txt", ".jinja")
"""Configurations, vocabularies and chat templates."""
WEIGHTS = ".safetensors"


def encoder_identity(family: Family, directory: Path) -> str:
    """Return JSON text about the code, libraries, settings and files of a backbone that its rows may depend on.

    directory: of the checkpoint. All options count, except those that never affect results; all files count, except the
    weights of denoisers. Raises UserError if a file cannot be read.
    """
    section, options = family.section, family.options
    without_effect = {key for key, effect in declared(type(options)).items() if effect == "any time"}
    found = {
        "class": f"{type(family).__module__}:{type(family).__qualname__}",
        "code": _code(type(family)),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "section": section.model_dump(mode="json", exclude=ELSEWHERE),
        "dtype": str(family.dtype),  # of the denoiser, which `train` decides; some rows have it
        "options": options.model_dump(mode="json", exclude=without_effect),
        "files": _files(family, directory),
    }
    return json.dumps(found, sort_keys=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _code(kind: type) -> str:
    """Return a digest of the modules beside the class and its bases up to those of this package.

    A backbone under development changes without its version.
    """
    modules = {sys.modules[k.__module__] for k in kind.__mro__ if issubclass(k, Family)}
    places = {Path(file).parent for module in modules if (file := getattr(module, "__file__", None))}
    sha = hashlib.sha256()
    for path in sorted(path for place in places for path in place.glob("*.py")):
        sha.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def _files(family: Family, directory: Path) -> dict[str, list[Any]]:
    """Return the digests of the files of all components, except the weights of denoisers."""
    layout, found = family.layout, {}
    try:
        for path in [directory / INDEX, *sorted(directory.glob("*/*"))]:
            component = path.parent.name
            read = path.suffix in SMALL or (
                path.suffix == WEIGHTS and component in layout.models and component not in layout.networks
            )
            if read and path.is_file():
                found[path.relative_to(directory).as_posix()] = _digest(path)
    except OSError as error:
        raise UserError(f"{CHECKPOINT}: cannot read {directory}: {error_text(error)}") from error
    return found


def _digest(path: Path) -> list[Any]:
    file, target = file_digest(path), path.resolve()
    if not is_sampled(file):
        return [file.digest]
    # Changes between the samples: a Hub repository's file is named by its content, another one has a time.
    rest = target.name if target.parent.name == "blobs" else target.stat().st_mtime_ns
    return [file.digest, file.bytes, rest]
