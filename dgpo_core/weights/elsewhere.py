"""Explain what a wrong path points to and suggest the path that was probably meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

__all__ = ["fetch_again", "unfinished", "what_file", "where_instead"]

PIPELINE = "model_index.json"
"""The index file of a pipeline directory in diffusers format."""
CONVERT = (
    "convert it with the pipeline class of diffusers, `from_single_file(FILE).save_pretrained(DIRECTORY)`, and "
    "use that directory"
)
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".zst")
ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")
SHOWN = 5
LOOKED_AT = 5000
"""Maximum number of directory entries to inspect."""


def what_file(path: Path, *, pipeline: bool) -> str:
    """Describe a file given in place of a model directory (or pipeline directory), and suggest a fix."""
    if path.name in (PIPELINE, "config.json"):
        return f"; use its directory, {path.parent}"
    if path.name in ADAPTERS:
        return ", a LoRA adapter; use the model that it was trained on"
    if path.suffix == ".gguf":
        return ", a quantized model in GGUF format, which is not supported; use the original weights"
    if path.suffix == ".safetensors" and pipeline:
        return f", a single-file checkpoint; {CONVERT}, or use the repository in diffusers format"
    if path.suffix in PICKLES and pipeline:
        return f", and pickles are not supported; {CONVERT}"
    if path.suffix in ARCHIVES:
        return ", an archive; unpack it and use the directory"
    return ""


def where_instead(directory: Path, wanted: str) -> str:
    """Return "; ..." that explains what a directory without the file `wanted` is and where that file is, or ""."""
    above = next((p for p in list(directory.parents)[:2] if _is_file(p / wanted)), None)
    if above is not None:
        return f"; it is part of the model in {above}; use that directory"
    entry = next((p for p in (directory, *list(directory.parents)[:2]) if _is_entry(p)), None)
    if entry is not None:
        return _of_entry(entry, directory, wanted)
    inner = [
        str(p.parent.relative_to(directory))
        for pattern in (f"*/{wanted}", f"*/*/{wanted}", f"models--*/snapshots/*/{wanted}")
        for p in islice(directory.glob(pattern), SHOWN)
    ]
    if inner:
        return f"; found one in {', '.join(sorted(dict.fromkeys(inner))[:SHOWN])}"
    return _contents(directory, wanted)


def hub_repository(directory: Path) -> str | None:
    """Return owner/name of the repository whose Hub cache contains a directory; None outside the cache."""
    for place in (directory, *directory.parents):
        if place.name.startswith("models--"):
            return place.name.removeprefix("models--").replace("--", "/", 1)
    return None


def fetch_again(directory: Path, part: str | None = None) -> str:
    """Return "; ..." with the command that downloads a model directory, or a component (`part`) of it."""
    repository = hub_repository(directory.absolute())
    only = f" --include '{part}/*'" if part else ""
    place = "" if repository else f" --local-dir {directory}"
    return unfinished(directory) + f"; download it with hf download {repository or 'REPOSITORY'}{only}{place}"


def unfinished(directory: Path) -> str:
    """Return "; ..." if this directory contains an interrupted download, else ""."""
    for place in (directory, *list(directory.parents)[:2]):
        for pattern in ("blobs/*.incomplete", ".cache/huggingface/download/**/*.incomplete", "*.incomplete"):
            found = next(place.glob(pattern), None) if place == directory or "/" in pattern else None
            if found is not None:
                return f"; a download was interrupted (it left {found.relative_to(place)}); start it again"
    return ""


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)


def _is_entry(place: Path) -> bool:
    return place.name.startswith("models--") or (
        os.path.isdir(place / "snapshots") and (os.path.isdir(place / "refs") or os.path.isdir(place / "blobs"))
    )


def _of_entry(entry: Path, directory: Path, wanted: str) -> str:
    """Describe a directory in the Hub cache of one repository, and name the snapshots that contain `wanted`."""
    repository = hub_repository(entry)
    what = "the Hub cache" + (f" of {repository}" if repository else "")
    try:
        main = (entry / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    found = sorted(p.parent for p in (entry / "snapshots").glob(f"*/{wanted}"))
    found.sort(key=lambda p: p.name != main)  # the head of the main branch first
    if found:
        shown = [f"{p}{' (refs/main)' * (p.name == main)}" for p in found[:SHOWN]]
        return f"; it is {'' if directory == entry else 'in '}{what}; use {' or '.join(shown)}"
    fetch = f"hf download {repository or 'REPOSITORY'}"
    return f"; it is {what}, where no snapshot has {wanted}{unfinished(entry)}; download it with {fetch}"


def _contents(directory: Path, wanted: str) -> str:
    """Describe a directory by its contents."""
    names = {entry.name for entry in _entries(directory)}
    if not names:
        return "; it is empty"
    if names & set(ADAPTERS):
        return "; it contains a LoRA adapter, not a model; use the model that it was trained on"
    if {"config.yaml", "run.json"} <= names:
        return "; it is a run directory; use the model that the run started from (see its config.yaml)"
    if {"manifest.json"} <= names and directory.parent.name == "checkpoints":
        return "; it is a training checkpoint of a run; use the model that the run started from"
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return f"; {gguf[0]} is a quantized model in GGUF format, which is not supported; use the original weights"
    if "config.json" in names and wanted == PIPELINE:
        return "; it contains a single model, not a pipeline; use the pipeline directory that contains it"
    broken = unfinished(directory)
    if broken:
        return broken
    if wanted != PIPELINE:
        return ""
    single = sorted(name for name in names if name.endswith((".safetensors", *PICKLES)))
    return f"; {single[0]} is a single-file checkpoint; {CONVERT}" if single else ""


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from islice(entries, LOOKED_AT)
    except OSError:
        return
