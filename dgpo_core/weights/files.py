"""Files of weights: which one of a directory is read, and whether it is whole, by its header alone."""

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
"""A side of a tensor."""
SMALL = re.compile(r"F[468](_.*)?|I8|U8")
"""Types of which no weights are, unless they are quantized."""
SCALES = re.compile(
    r"(^|\.)(scale_weight|scaled_fp8|weight_scale(_inv|_2)?|absmax|nested_absmax|quant_map|SCB|qweight|qzeros|wscales|"
    r"smooth_factor(_orig)?|weight\._data|weight_qtype|weight_packed)$|\.quant_state\."
)
"""Names that only quantized weights have: scaled fp8, modelopt, bitsandbytes, GPTQ and AWQ, nunchaku, quanto."""
SINGLE = ("model.diffusion_model.", "joint_blocks.", "double_blocks.", "first_stage_model.", "cond_stage_model.")
"""How names of tensors begin in checkpoints of a single file, and in ComfyUI's."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SHOWN = 6


def check_weights(directory: Path, stem: str, where: str, *, variant: str | None = None) -> str | None:
    """Check the weights of one model, and tell which variant of them is to be read: None for the plain ones.

    stem: how the files are called, "model" (transformers) or "diffusion_pytorch_model" (diffusers); variant: which is
    preferred where there are several, such as "fp16". The one asked for wins, then the plain ones, then the only one
    there is. Raises UserError, beginning with `where`, if there are none, if several variants leave the choice, and for
    weights that are incomplete, damaged, or quantized.
    """
    names = _names(directory, where)
    found = _variants(names, stem)
    chosen = variant if variant in found else None
    if chosen is None and None not in found:
        if not found:
            raise UserError(f"{where}: {directory} {_none(directory, names, stem)}")
        if len(found) > 1:
            there = ", ".join(sorted(str(one) for one in found))
            raise UserError(
                f"{where}: {directory} has its weights in several variants, {there}; choose one with the option variant"
            )
        (chosen,) = found
    for name in _files(directory, found[chosen], where):
        check_file(directory / name, where)
    return chosen


def shapes(directory: Path, stem: str, where: str, *, variant: str | None) -> dict[str, list[int]]:
    """Tensors by name, as the headers of checked safetensors files have them; variant: as `check_weights` returned it.
    Raises UserError for a shape that is none."""
    found: dict[str, list[int]] = {}
    for name in _files(directory, _variants(_names(directory, where), stem)[variant], where):
        path = directory / name
        with path.open("rb") as file:
            header = _header(file, os.fstat(file.fileno()).st_size, path, where)
        for tensor, entry in header.items():
            shape = entry.get("shape")
            if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n <= LARGEST for n in shape):
                raise UserError(f"{where}: {path}: the shape of {clean(tensor, 150)} is none; download it again")
            found[tensor] = shape
    return found


def check_file(path: Path, where: str) -> None:
    """Raise UserError for a file of weights that is not there, empty, a stand-in for the file, cut off, damaged or
    quantized. Of a safetensors file the header is read, of others the first bytes."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write into it
        raise UserError(f"{where}: {path} is no file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(512)
            if is_pointer(beginning):
                raise UserError(
                    f"{where}: {path} is a pointer of git-lfs ({size} bytes), not the weights: run `git lfs pull` there"
                )
            if not beginning:
                raise UserError(f"{where}: {path} is empty: download it again{unfinished(path.parent)}")
            if beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise UserError(f"{where}: {path} is a page of a web site, not the weights: download it again")
            if beginning.startswith(b"GGUF"):
                raise quantized(f"{where}: {path} is in GGUF's format")
            if path.suffix == SAFETENSORS:
                file.seek(0)
                _check_header(_header(file, size, path, where), path, where)
    except FileNotFoundError as error:
        link = path.is_symlink()
        what = f"is a link to {clean(os.readlink(path), 300)}, which is not there" if link else "is not there"
        raise UserError(f"{where}: {path} {what}: the download is incomplete{_again(path.parent)}") from error
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror or error}") from error


def _names(directory: Path, where: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no directory {directory}{_again(directory)}") from error
    except OSError as error:
        raise UserError(f"{where}: {directory} cannot be read: {error.strerror or error}") from error


def _variants(names: Iterable[str], stem: str) -> dict[str | None, str]:
    """Variant to the file that is opened first: an index of shards, or all weights in one. As the libraries call them:
    STEM.VARIANT.safetensors, STEM.safetensors.index.VARIANT.json."""
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
    """The files that hold the tensors."""
    if not first.endswith(".json"):
        return [first]
    path = directory / first
    shards = read_json(path, where).get("weight_map")
    if not isinstance(shards, Mapping) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{where}: {path}: weight_map must say for every tensor which file holds it")
    names = sorted(set(shards.values()))
    odd = next((name for name in names if Path(name).name != name or "\0" in name or name in ("", "..")), None)
    if odd is not None:
        raise UserError(f"{where}: {path}: weight_map names {clean(odd, 100)!r}; allowed are files beside it")
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise UserError(
            f"{where}: {directory} lacks {len(missing)} of the {len(names)} files that {first} names, "
            f"{', '.join(missing[:SHOWN])}: the download is incomplete{_again(directory)}"
        )
    return names


def _none(directory: Path, names: Sequence[str], stem: str) -> str:
    """What there is instead of weights."""
    wanted = f"{stem}{SAFETENSORS}"
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(SAFETENSORS)]
    shards = [name for name in others if re.search(r"-\d{5}-of-\d{5}", name)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"has its weights in GGUF's format ({gguf[0]}), which is quantized and not supported: take the original"
    if shards:
        return f"has shards of weights ({shards[0]}), but not {stem}{INDEX}, which says what is in which: download it"
    if others:
        return f"has no {wanted}; {others[0]} is called otherwise: if it holds these weights, rename it"
    if pickles:
        return (
            f"has its weights as {pickles[0]} alone, a pickle, which is not read: load the model once where you trust "
            "it, and save_pretrained(DIRECTORY, safe_serialization=True)"
        )
    return f"has no weights: there is no {wanted}{_again(directory)}"


def _again(directory: Path) -> str:
    """How to fetch what is missing of one model's directory, which may be one of several of a pipeline."""
    return fetch_again(directory) if hub_repository(directory.absolute()) else unfinished(directory)


def _header(file: BinaryIO, size: int, path: Path, where: str) -> Mapping[str, Any]:
    try:
        header, _ = read_header(file, size)
    except BadHeader as error:
        way_on = f": the download is incomplete{_again(path.parent)}" if error.incomplete else "; download it again"
        raise UserError(f"{where}: {path} is no whole safetensors file: {error}{way_on}") from error
    if not header:
        raise UserError(f"{where}: {path} holds no tensors")
    return header


def _check_header(header: Mapping[str, Any], path: Path, where: str) -> None:
    """Raise UserError for quantized tensors, and for the names of another program."""
    for name, entry in header.items():
        shown, kind, shape = clean(name, 150), str(entry.get("dtype")), entry.get("shape") or ()
        if SCALES.search(name):
            raise quantized(f"{where}: {path} has {shown}, as quantized weights have")
        if SMALL.fullmatch(kind) and (kind.startswith("F") or ("weight" in name and len(shape) > 1)):
            raise quantized(f"{where}: {path} holds {shown} as {kind}")
        if name.startswith(SINGLE):
            raise UserError(
                f"{where}: {path} has {shown}, a name of checkpoints of a single file: convert it with diffusers "
                "(`from_single_file`, then `save_pretrained`), or take the repository in diffusers' format"
            )
