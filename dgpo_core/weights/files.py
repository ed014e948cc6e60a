"""Select a model's weight files and check that they are complete, by their headers alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dgpo_core.errors import UserError
from dgpo_core.system.headers import BadHeader, read_header
from dgpo_core.weights.configurations import is_pointer, quantized, read_json
from dgpo_core.weights.elsewhere import fetch_again, hub_repository, unfinished
from dgpo_schemas.text import clean

__all__ = ["check_file", "check_weights", "shapes"]

SAFETENSORS, INDEX = ".safetensors", ".safetensors.index.json"
LARGEST = 10**16
"""Maximum size of a tensor dimension."""
SMALL = re.compile(r"F[468](_.*)?|I8|U8")
"""Dtypes that only quantized weights have."""
SCALES = re.compile(
    r"(^|\.)(scale_weight|scaled_fp8|weight_scale(_inv|_2)?|absmax|nested_absmax|quant_map|SCB|qweight|qzeros|wscales|"
    r"smooth_factor(_orig)?|weight\._data|weight_qtype|weight_packed)$|\.quant_state\."
)
"""Tensor names that only quantized weights have: scaled fp8, modelopt, bitsandbytes, GPTQ and AWQ, nunchaku, quanto."""
SINGLE = ("model.diffusion_model.", "joint_blocks.", "double_blocks.", "first_stage_model.", "cond_stage_model.")
"""Prefixes of tensor names in single-file checkpoints, including those of ComfyUI."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SHOWN = 6


def check_weights(directory: Path, stem: str, where: str, *, variant: str | None = None) -> str | None:
    """Check the weights of one model and return the variant to load; None for files without a variant.

    stem: the base name of the files, "model" (transformers) or "diffusion_pytorch_model" (diffusers). variant: the
    preferred variant, such as "fp16". Order of choice: the preferred variant, the files without a variant, the only
    variant available. Raises UserError, beginning with `where`, if there are no weights, if several variants remain, or
    if the weights are incomplete, damaged or quantized.
    """
    names = _names(directory, where)
    found = _variants(names, stem)
    chosen = variant if variant in found else None
    if chosen is None and None not in found:
        if not found:
            raise UserError(f"{where}: {directory} {_none(directory, names, stem)}")
        if len(found) > 1:
            available = ", ".join(sorted(str(name) for name in found))
            raise UserError(
                f"{where}: {directory} has weights in several variants, {available}; choose one with the option variant"
            )
        (chosen,) = found
    for name in _files(directory, found[chosen], where):
        check_file(directory / name, where)
    return chosen


def shapes(directory: Path, stem: str, where: str, *, variant: str | None) -> dict[str, list[int]]:
    """Return the shape of each tensor by name, from the headers of checked safetensors files.

    variant: as returned by `check_weights`. Raises UserError for an invalid shape.
    """
    found: dict[str, list[int]] = {}
    for name in _files(directory, _variants(_names(directory, where), stem)[variant], where):
        path = directory / name
        with path.open("rb") as file:
            header = _header(file, os.fstat(file.fileno()).st_size, path, where)
        for tensor, entry in header.items():
            shape = entry.get("shape")
            if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n <= LARGEST for n in shape):
                raise UserError(f"{where}: {path}: the shape of {clean(tensor, 150)} is invalid; download it again")
            found[tensor] = shape
    return found


def check_file(path: Path, where: str) -> None:
    """Raise UserError if a weight file is missing, empty, a git-lfs pointer, truncated, damaged or quantized.

    Reads the header of a safetensors file, and the first bytes of any other file.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block until a writer connects
        raise UserError(f"{where}: {path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(512)
            if is_pointer(beginning):
                raise UserError(
                    f"{where}: {path} is a git-lfs pointer ({size} bytes), not the weights; "
                    "run `git lfs pull` in its directory"
                )
            if not beginning:
                raise UserError(f"{where}: {path} is empty; download it again{unfinished(path.parent)}")
            if beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise UserError(f"{where}: {path} is an HTML page, not the weights; download it again")
            if beginning.startswith(b"GGUF"):
                raise quantized(f"{where}: {path} is in GGUF format")
            if path.suffix == SAFETENSORS:
                file.seek(0)
                _check_header(_header(file, size, path, where), path, where)
    except FileNotFoundError as error:
        link = path.is_symlink()
        what = f"is a link to {clean(os.readlink(path), 300)}, which does not exist" if link else "does not exist"
        raise UserError(f"{where}: {path} {what}; the download is incomplete{_again(path.parent)}") from error
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror or error}") from error


def _names(directory: Path, where: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such directory: {directory}{_again(directory)}") from error
    except OSError as error:
        raise UserError(f"{where}: {directory} cannot be read: {error.strerror or error}") from error


def _variants(names: Iterable[str], stem: str) -> dict[str | None, str]:
    """Map each variant to the file to open first: a shard index or a single weight file.

    File names follow the libraries: STEM.VARIANT.safetensors, STEM.safetensors.index.VARIANT.json.
    """
    one = re.compile(rf"{re.escape(stem)}(?:\.(?P<variant>.+))?\.safetensors")
    index = re.compile(rf"{re.escape(stem)}\.safetensors\.index(?:\.(?P<variant>.+))?\.json")
    shard = re.compile(r".*-\d{5}-of-\d{5}")
    found: dict[str | None, str] = {}
    # diffusers prefers the index, transformers the single file.
    for pattern in (index, one) if stem == "model" else (one, index):
        for name in names:
            match = pattern.fullmatch(name)
            if match and not shard.fullmatch(name.removesuffix(SAFETENSORS)):
                found[match["variant"]] = name
    return found


def _files(directory: Path, first: str, where: str) -> Sequence[str]:
    """Return the files that contain the tensors."""
    if not first.endswith(".json"):
        return [first]
    path = directory / first
    shards = read_json(path, where).get("weight_map")
    if not isinstance(shards, Mapping) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{where}: {path}: weight_map must map every tensor name to a file name")
    names = sorted(set(shards.values()))
    odd = next((name for name in names if Path(name).name != name or "\0" in name or name in ("", "..")), None)
    if odd is not None:
        raise UserError(f"{where}: {path}: weight_map names {clean(odd, 100)!r}; allowed are files beside it")
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise UserError(
            f"{where}: {directory} is missing {len(missing)} of the {len(names)} files listed in {first}: "
            f"{', '.join(missing[:SHOWN])}; the download is incomplete{_again(directory)}"
        )
    return names


def _none(directory: Path, names: Sequence[str], stem: str) -> str:
    """Describe what a directory without weights contains instead."""
    wanted = f"{stem}{SAFETENSORS}"
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(SAFETENSORS)]
    shards = [name for name in others if re.search(r"-\d{5}-of-\d{5}", name)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"has quantized weights in GGUF format ({gguf[0]}), which is not supported; use the original weights"
    if shards:
        return f"has weight shards ({shards[0]}), but not their index {stem}{INDEX}; download it"
    if others:
        return f"has no {wanted}; if {others[0]} contains these weights, rename it"
    if pickles:
        return (
            f"has its weights only as a pickle, {pickles[0]}, which is not supported; load the model where you trust "
            "it and convert it with save_pretrained(DIRECTORY, safe_serialization=True)"
        )
    return f"has no weights: no such file: {wanted}{_again(directory)}"


def _again(directory: Path) -> str:
    """Return "; ..." that says how to complete the directory of one model, which may be part of a pipeline."""
    return fetch_again(directory) if hub_repository(directory.absolute()) else unfinished(directory)


def _header(file: BinaryIO, size: int, path: Path, where: str) -> Mapping[str, Any]:
    try:
        header, _ = read_header(file, size)
    except BadHeader as error:
        advice = f"; the download is incomplete{_again(path.parent)}" if error.incomplete else "; download it again"
        raise UserError(f"{where}: {path} is not a complete safetensors file: {error}{advice}") from error
    if not header:
        raise UserError(f"{where}: {path} contains no tensors")
    return header


def _check_header(header: Mapping[str, Any], path: Path, where: str) -> None:
    """Raise UserError for quantized tensors, and for tensor names of a single-file checkpoint."""
    for name, entry in header.items():
        shown, kind, shape = clean(name, 150), str(entry.get("dtype")), entry.get("shape") or ()
        if SCALES.search(name):
            raise quantized(f"{where}: {path} has the tensor {shown}, which only quantized weights have")
        if SMALL.fullmatch(kind) and (kind.startswith("F") or ("weight" in name and len(shape) > 1)):
            raise quantized(f"{where}: {path} contains {shown} as {kind}")
        if name.startswith(SINGLE):
            raise UserError(
                f"{where}: {path} has {shown}, a tensor name of single-file checkpoints; convert it with diffusers "
                "(`from_single_file`, then `save_pretrained`), or use the repository in diffusers format"
            )
