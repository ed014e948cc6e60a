"""The images of a run's evaluations, and the files that may be sent of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dgpo_core.system.reading import read_file, read_json

__all__ = ["KINDS", "evaluations_with_images", "media", "samples_of"]

KINDS = {"png": ("image/png", b"\x89PNG\r\n\x1a\n", 0), "mp4": ("video/mp4", b"ftyp", 4)}
"""Content type of each kind of file, with the bytes that such a file has at an offset."""
LARGEST_MEDIA = 256 * 2**20
MOST = 48
"""Maximum number of samples of an evaluation that are shown."""
ITERATION = re.compile(r"[0-9]{1,15}")
SAMPLE = re.compile(r"([0-9]{1,6})\.png")


def evaluations_with_images(run: Path) -> list[int]:
    """Return the iterations whose evaluations have images, in order."""
    try:
        with os.scandir(run / "images") as entries:
            return sorted({int(e.name) for e in entries if ITERATION.fullmatch(e.name) and e.is_dir()})
    except OSError:
        return []


def samples_of(run: Path, iteration: int) -> list[dict[str, Any]]:
    """Return the samples of an evaluation: index, prompt, version of the file, and whether there is a video."""
    directory = _directory(run, iteration)
    if directory is None:
        return []
    prompts = _prompts(directory)
    try:
        found = {int(m[1]): name for name in os.listdir(directory) if (m := SAMPLE.fullmatch(name))}
    except OSError:
        return []
    samples = []
    for index in sorted(found)[:MOST]:
        file = directory / found[index]
        try:
            version = file.stat().st_mtime_ns
        except OSError:
            continue
        prompt = prompts[index] if index < len(prompts) else ""
        video = file.with_suffix(".mp4").is_file()
        samples.append({"index": index, "prompt": prompt, "version": f"{version:x}", "video": video})
    return samples


def media(run: Path, iteration: int, index: int, kind: str) -> bytes | None:
    """Return the file of a sample; None if there is none, if it lies outside the run, or is not of its kind."""
    directory = _directory(run, iteration)
    if directory is None or kind not in KINDS:
        return None
    for name in (f"{index:02d}.{kind}", f"{index}.{kind}"):
        file = directory / name
        try:
            if not file.resolve().is_relative_to(run.resolve()):
                continue
            data = read_file(file, LARGEST_MEDIA)
        except OSError:
            continue
        _, magic, offset = KINDS[kind]
        return data if data[offset : offset + len(magic)] == magic else None
    return None


def _directory(run: Path, iteration: int) -> Path | None:
    """Return the directory of an evaluation's images."""
    for name in (f"{iteration:06d}", str(iteration)):
        if (run / "images" / name).is_dir():
            return run / "images" / name
    return None


def _prompts(directory: Path) -> list[str]:
    try:
        found = read_json(directory / "prompts.json")
    except (OSError, ValueError):
        return []
    return [str(prompt) for prompt in found] if isinstance(found, list) else []
