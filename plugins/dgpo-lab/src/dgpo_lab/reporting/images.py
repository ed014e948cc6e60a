"""Images and videos of the first and the last evaluation, side by side and small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dgpo_core.media.beside import FILE
from dgpo_core.system.reading import open_file, read_file, read_json, why

__all__ = ["Pair", "RunImage", "RunImages", "read_images"]

LARGEST = 512
"""Longest side in the page, pixels; larger images are reduced."""
TINY = 128
"""Images up to this side are shown pixel by pixel, so they are kept without loss."""
NUMBER = re.compile(r"[0-9]{1,15}")
MEDIUM = re.compile(r"media-[0-9a-f]{12}\.png")
LARGEST_VIDEO = 300_000
"""Bytes of an mp4 file in the page; of larger ones it shows the film strip alone."""


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image as a data URI, with its size in pixels; of a video its film strip, and the mp4 too if that is small."""

    uri: str
    width: int
    height: int
    video: str | None = None

    @property
    def tiny(self) -> bool:
        """Whether to enlarge it without smoothing."""
        return _is_tiny(self.width, self.height)

    @property
    def wide(self) -> bool:
        """A video, or a strip such as its frames."""
        return self.video is not None or _is_wide(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, drawn from the same noise before and (unless there is only one evaluation) after."""

    prompt: str
    before: RunImage
    after: RunImage | None
    negative: str = ""
    medium: RunImage | None = None
    """The first of what it was conditioned on, small."""


@dataclass(frozen=True, slots=True)
class RunImages:
    """Pairs of the evaluations `first` and `last`; both None if there are no images, `last` None if only one."""

    first: int | None
    last: int | None
    pairs: Sequence[Pair]


def read_images(directory: Path, problems: list[str]) -> RunImages:
    """Read `images/NNNNNN/NN.png` and their prompts; damaged files are left out and mentioned in `problems`."""
    found = {}
    try:
        if directory.is_dir():
            numbered = [d for d in directory.iterdir() if NUMBER.fullmatch(d.name) and d.is_dir()]
            found = {int(d.name): d for d in numbered if any(d.glob("*.png"))}
    except OSError as error:
        problems.append(f"The images cannot be read: {why(error)}.")
    if not found:
        return RunImages(None, None, ())
    first, last = min(found), max(found)
    before = _read(found[first], problems)
    if first == last:
        return RunImages(first, None, before)
    after = _read(found[last], problems)
    return RunImages(first, last, _pairs(before, after))


def _pairs(before: Sequence[Pair], after: Sequence[Pair]) -> list[Pair]:
    """Images of the same prompt and noise: those at the same place, or where the selection changed, by prompt."""
    if [one.prompt for one in before] == [one.prompt for one in after]:
        return [replace(one, after=two.before) for one, two in zip(before, after, strict=True)]
    counts = Counter(one.prompt for one in before), Counter(one.prompt for one in after)
    later = {one.prompt: one.before for one in after}
    single = [one for one in before if one.prompt and counts[0][one.prompt] == counts[1][one.prompt] == 1]
    return [replace(one, after=later[one.prompt]) for one in single]


def _read(directory: Path, problems: list[str]) -> list[Pair]:
    try:
        prompts = [str(prompt) for prompt in read_json(directory / "prompts.json")]
    except (OSError, ValueError, TypeError):
        prompts = []
        problems.append(f"The prompts of the images in {directory.name} are not known (prompts.json).")
    reported = _conditions(directory, problems)
    found = []
    for file in sorted(
        (f for f in directory.glob("*.png") if NUMBER.fullmatch(f.stem)), key=lambda file: int(file.stem)
    ):
        image = _image(file)
        if image is None:
            problems.append(f"The image {directory.name}/{file.name} is damaged.")
            continue
        index = int(file.stem)
        negative, medium = reported.get(index, ("", ""))
        shown = _image(directory / medium) if medium else None
        found.append(Pair(prompts[index] if index < len(prompts) else "", image, None, negative, shown))
    return found


def _conditions(directory: Path, problems: list[str]) -> dict[int, tuple[str, str]]:
    """(negative text, file of the first medium) of samples by their numbers, each empty if there is none."""
    try:
        reported = read_json(directory / FILE)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        reported = None
    if not isinstance(reported, list):
        problems.append(f"What the images in {directory.name} were drawn from is not known ({FILE}).")
        return {}
    found = {}
    for index, one in enumerate(reported):
        if isinstance(one, dict):
            name = str(one.get("media", ""))
            found[index] = str(one.get("negative_prompt", "")), name if MEDIUM.fullmatch(name) else ""
    return found


def _image(file: Path) -> RunImage | None:
    from PIL import Image

    try:
        with open_file(file) as handle, Image.open(handle, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
        return None
    width, height = image.size
    buffer = io.BytesIO()
    if _is_tiny(width, height):
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        # A strip of frames keeps its frames' size: only its height counts.
        image.thumbnail((LARGEST * max(1, round(width / height)), LARGEST))
        image.save(buffer, "JPEG", quality=88, optimize=True)
    return RunImage(_uri(f"image/{kind}", buffer.getvalue()), width, height, _video(file.with_suffix(".mp4")))


def _video(file: Path) -> str | None:
    try:
        data = read_file(file, LARGEST_VIDEO)
    except OSError:
        return None
    return _uri("video/mp4", data) if data else None


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _is_wide(width: int, height: int) -> bool:
    return width > 1.8 * height


def _is_tiny(width: int, height: int) -> bool:
    return (height if _is_wide(width, height) else max(width, height)) <= TINY
