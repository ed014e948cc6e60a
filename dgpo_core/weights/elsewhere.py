"""What a directory or a file is that is not what was asked for, and where that lies instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

__all__ = ["fetch_again", "unfinished", "what_file", "where_instead"]

PIPELINE = "model_index.json"
"""What directories of a pipeline in diffusers' format hold."""
CONVERT = (
    "read it once with the pipeline's class of diffusers, `from_single_file(FILE).save_pretrained(DIRECTORY)`, and "
    "give that directory"
)
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".zst")
ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")
SHOWN = 5
LOOKED_AT = 5000
"""Entries of a directory above many others that are looked at."""


def what_file(path: Path, *, pipeline: bool) -> str:
    """Of a file where a directory is wanted, of a pipeline or of one model: what it is, and the way on."""
    if path.name in (PIPELINE, "config.json"):
        return f": give the directory that it lies in, {path.parent}"
    if path.name in ADAPTERS:
        return ", a LoRA: give the model that it was trained on"
    if path.suffix == ".gguf":
        return ", a quantized model in GGUF's format, which is not supported: take the original weights"
    if path.suffix == ".safetensors" and pipeline:
        return f", a checkpoint of a single file: {CONVERT}, or take the repository in diffusers' format"
    if path.suffix in PICKLES and pipeline:
        return f", and pickles are not read: {CONVERT}"
    if path.suffix in ARCHIVES:
        return ": unpack it and give the directory"
    return ""


def where_instead(directory: Path, wanted: str) -> str:
    """Of a directory without the file `wanted`: "; ..." that says what it is and where the file lies, or nothing."""
    above = next((p for p in list(directory.parents)[:2] if _is_file(p / wanted)), None)
    if above is not None:
        return f"; it is a part of the model in {above}: give that directory"
    entry = next((p for p in (directory, *list(directory.parents)[:2]) if _is_entry(p)), None)
    if entry is not None:
        return _of_entry(entry, directory, wanted)
    inner = [
        str(p.parent.relative_to(directory))
        for pattern in (f"*/{wanted}", f"*/*/{wanted}", f"models--*/snapshots/*/{wanted}")
        for p in islice(directory.glob(pattern), SHOWN)
    ]
    if inner:
        return f"; there is one in {', '.join(sorted(dict.fromkeys(inner))[:SHOWN])}"
    return _contents(directory, wanted)


def hub_repository(directory: Path) -> str | None:
    """owner/name of a directory within the Hub's cache; None elsewhere."""
    for place in (directory, *directory.parents):
        if place.name.startswith("models--"):
            return place.name.removeprefix("models--").replace("--", "/", 1)
    return None


def fetch_again(directory: Path, part: str | None = None) -> str:
    """ "; ..." that says how to fetch what a model's directory lacks, or a part of it."""
    repository = hub_repository(directory.absolute())
    only = f" --include '{part}/*'" if part else ""
    place = "" if repository else f" --local-dir {directory}"
    return unfinished(directory) + f"; fetch it with hf download {repository or 'REPOSITORY'}{only}{place}"


def unfinished(directory: Path) -> str:
    """ "; ..." about a download that broke off into this directory, or nothing."""
    for place in (directory, *list(directory.parents)[:2]):
        for pattern in ("blobs/*.incomplete", ".cache/huggingface/download/**/*.incomplete", "*.incomplete"):
            found = next(place.glob(pattern), None) if place == directory or "/" in pattern else None
            if found is not None:
                return f"; a download broke off, {found.relative_to(place)} is left of it: start it again"
    return ""


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)


def _is_entry(place: Path) -> bool:
    return place.name.startswith("models--") or (
        os.path.isdir(place / "snapshots") and (os.path.isdir(place / "refs") or os.path.isdir(place / "blobs"))
    )


def _of_entry(entry: Path, directory: Path, wanted: str) -> str:
    """Of the Hub's cache of one repository, or a directory within."""
    repository = hub_repository(entry)
    what = "the Hub's cache" + (f" of {repository}" if repository else "")
    try:
        main = (entry / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    found = sorted(p.parent for p in (entry / "snapshots").glob(f"*/{wanted}"))
    found.sort(key=lambda p: p.name != main)  # the branch's own first
    if found:
        shown = [f"{p}{' (refs/main)' * (p.name == main)}" for p in found[:SHOWN]]
        return f"; it is {'' if directory == entry else 'within '}{what}: give {' or '.join(shown)}"
    fetch = f"hf download {repository or 'REPOSITORY'}"
    return f"; it is {what}, in which no snapshot has {wanted}{unfinished(entry)}; fetch it whole: {fetch}"


def _contents(directory: Path, wanted: str) -> str:
    """Told by what lies in it."""
    names = {entry.name for entry in _entries(directory)}
    if not names:
        return "; it is empty"
    if names & set(ADAPTERS):
        return "; it holds a LoRA, not a model: give the model that it was trained on"
    if {"config.yaml", "run.json"} <= names:
        return "; it is the directory of a run: give the model that the run began with (its config.yaml names it)"
    if {"manifest.json"} <= names and directory.parent.name == "checkpoints":
        return "; it is a checkpoint of a run's training state: give the model that the run began with"
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return f"; {gguf[0]} is a quantized model in GGUF's format, which is not supported: take the original weights"
    if "config.json" in names and wanted == PIPELINE:
        return "; it holds one model, not a pipeline of several: give a directory that has it as a subdirectory"
    broken = unfinished(directory)
    if broken:
        return broken
    if wanted != PIPELINE:
        return ""
    single = sorted(name for name in names if name.endswith((".safetensors", *PICKLES)))
    return f"; {single[0]} is a checkpoint of a single file: {CONVERT}" if single else ""


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from islice(entries, LOOKED_AT)
    except OSError:
        return
