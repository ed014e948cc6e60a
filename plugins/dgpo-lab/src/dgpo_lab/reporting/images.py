"""Images and videos of the first and the last evaluation, reduced in size to be embedded in a page."""

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
"""Maximum side in the page in pixels; larger images are downscaled."""
TINY = 128
"""Images up to this side are shown without smoothing, so they are stored losslessly."""
NUMBER = re.compile(r"[0-9]{1,15}")
MEDIUM = re.compile(r"media-[0-9a-f]{12}\.png")
LARGEST_VIDEO = 300_000
"""Maximum bytes of an embedded MP4 file; of larger ones only the film strip is shown."""


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image as a data URI with its size in pixels; for a video the film strip, and the MP4 file if it is small."""

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
        """Whether it is a video, or a wide image such as a film strip."""
        return self.video is not None or _is_wide(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Pair:
    """The images of one prompt from the same noise; `after` is None if there is only one evaluation."""

    prompt: str
    before: RunImage
    after: RunImage | None
    negative: str = ""
    medium: RunImage | None = None
    """The first condition image, downscaled."""


@dataclass(frozen=True, slots=True)
class RunImages:
    """Image pairs of the evaluations `first` and `last` (iterations).

    Both are None if there are no images; `last` is None if there is only one evaluation.
    """

    first: int | None
    last: int | None
    pairs: Sequence[Pair]


def read_images(directory: Path, problems: list[str]) -> RunImages:
    """Read `images/NNNNNN/NN.png` and their prompts; damaged files are skipped and reported in `problems`."""
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
    """Pair images of the same prompt and noise by index, or by unique prompt if the selection of prompts changed."""
    if [pair.prompt for pair in before] == [pair.prompt for pair in after]:
        return [replace(pair, after=later.before) for pair, later in zip(before, after, strict=True)]
    counts = Counter(pair.prompt for pair in before), Counter(pair.prompt for pair in after)
    images = {pair.prompt: pair.before for pair in after}
    unique = [pair for pair in before if pair.prompt and counts[0][pair.prompt] == counts[1][pair.prompt] == 1]
    return [replace(pair, after=images[pair.prompt]) for pair in unique]


def _read(directory: Path, problems: list[str]) -> list[Pair]:
    try:
        prompts = [str(prompt) for prompt in read_json(directory / "prompts.json")]
    except (OSError, ValueError, TypeError):
        prompts = []
        problems.append(f"The prompts of the images in {directory.name} are unknown: prompts.json cannot be read.")
    conditions = _conditions(directory, problems)
    found = []
    for file in sorted(
        (f for f in directory.glob("*.png") if NUMBER.fullmatch(f.stem)), key=lambda file: int(file.stem)
    ):
        image = _image(file)
        if image is None:
            problems.append(f"The image {directory.name}/{file.name} is damaged.")
            continue
        index = int(file.stem)
        negative, medium = conditions.get(index, ("", ""))
        shown = _image(directory / medium) if medium else None
        found.append(Pair(prompts[index] if index < len(prompts) else "", image, None, negative, shown))
    return found


def _conditions(directory: Path, problems: list[str]) -> dict[int, tuple[str, str]]:
    """Return (negative prompt, file of the first condition image) by sample index, each "" if there is none."""
    try:
        entries = read_json(directory / FILE)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        entries = None
    if not isinstance(entries, list):
        problems.append(f"The conditions of the images in {directory.name} are unknown: {FILE} cannot be read.")
        return {}
    conditions = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = str(entry.get("media", ""))
            conditions[index] = str(entry.get("negative_prompt", "")), name if MEDIUM.fullmatch(name) else ""
    return conditions


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
        # Only the height of a film strip is limited, so that its frames keep their size.
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
