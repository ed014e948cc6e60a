"""Folders of samples as benchmarks lay them out, with the prompt of each sample.

geneval            00000/metadata.jsonl, with the prompt and its metadata, and 00000/samples/0000.png, 0001.png, ...
dpg                ITEM.png, a grid of two by two samples; the prompt file has a line with the key `item` for each
numbered           7.png, 7_0.png, 7_1.png, ...: the line of the prompt file with `prompt_id` 7, or its eighth line
                   (LongText-Bench, and flat folders by prompt index)
t2i-compbench      a green bench_000001.png: the prompt, and the number of the sample
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.media.files import MediaError, Medium, check_files, read_media
from dgpo_core.training.score_samples import Sample
from dgpo_core.types import Prompt
from dgpo_lab.scoring.listing import expand, natural_order

__all__ = ["LAYOUTS", "looks_like_geneval", "of_layout", "read_layout"]

FLAG = "--layout"
QUARTERS = ("upper left", "upper right", "lower left", "lower right")
NUMBERED = re.compile(r"(\d+)(?:_\d+)?")
COMPBENCH = re.compile(r"(.+)_(\d{1,12})", re.DOTALL)


def looks_like_geneval(paths: Sequence[Path]) -> bool:
    """Return whether a single directory has GenEval's layout: a numbered directory with metadata and samples."""
    if len(paths) != 1 or not paths[0].is_dir():
        return False
    try:
        return any((one / "metadata.jsonl").is_file() and (one / "samples").is_dir() for one in _numbered(paths[0]))
    except OSError:  # reported when the files are listed
        return False


def of_layout(
    layout: str, paths: Sequence[Path], source: Path | None, note: Callable[[str], None] = lambda _: None
) -> list[Sample]:
    """Return the samples of directories in one of `LAYOUTS`, in the order of their prompts.

    source: the prompt file, for the layouts that need one. `note` receives messages about skipped files. Raises
    UserError for directories of another layout, and for prompts that are absent.
    """
    _check_directories(layout, paths)
    needs = layout in ("dpg", "numbered")
    if needs and source is None:
        raise UserError(f"{FLAG} {layout}: requires --prompts FILE with the benchmark's prompts")
    if not needs and source is not None:
        raise UserError(f"{FLAG} {layout}: the prompts are in the directory; remove --prompts")
    return read_layout(layout, paths, load_file(source) if source is not None else [], note)


def read_layout(
    layout: str, paths: Sequence[Path], prompts: Sequence[Prompt], note: Callable[[str], None] = lambda _: None
) -> list[Sample]:
    """Return the samples of directories in a layout, with those of the prompts that they are of, as `of_layout`."""
    _check_directories(layout, paths)
    found = [sample for path in paths for sample in LAYOUTS[layout](path, prompts, note)]
    if not found:
        raise UserError(f"{FLAG} {layout}: {', '.join(map(str, paths))}: no samples in this layout")
    return found


def _check_directories(layout: str, paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{FLAG} {layout}: {path} is not a directory")


def _geneval(directory: Path, prompts: Sequence[Prompt], note: Callable[[str], None]) -> list[Sample]:
    samples = []
    for one in _numbered(directory):
        metadata = one / "metadata.jsonl"
        if not metadata.is_file() or not (one / "samples").is_dir():
            raise UserError(f"{FLAG} geneval: {one}: must contain metadata.jsonl and the directory samples")
        lines = load_file(metadata)
        if len(lines) != 1:
            raise UserError(f"{metadata}: must have one line, the prompt of the samples beside it, not {len(lines)}")
        samples += [_sample(file, lines[0]) for file in _files(one / "samples", note)]
    return samples


def _numbered_files(directory: Path, prompts: Sequence[Prompt], note: Callable[[str], None]) -> list[Sample]:
    numbers = [prompt.metadata.get("prompt_id", i) for i, prompt in enumerate(prompts)]
    by_number = dict(zip(numbers, prompts, strict=True))
    samples = []
    for file in _files(directory, note):
        match = NUMBERED.fullmatch(file.stem)
        if match is None:
            raise UserError(
                f"{FLAG} numbered: {file}: its name must be the number of its prompt, such as 7.png or 7_0.png"
            )
        number = int(match[1])
        if number not in by_number:
            raise UserError(f"{FLAG} numbered: {file}: there is no prompt {number} among {len(prompts)} prompts")
        samples.append(_sample(file, by_number[number]))
    return samples


def _compbench(directory: Path, prompts: Sequence[Prompt], note: Callable[[str], None]) -> list[Sample]:
    samples = []
    for file in _files(directory, note):
        match = COMPBENCH.fullmatch(file.stem)
        if match is None:
            raise UserError(f"{FLAG} t2i-compbench: {file}: its name must be PROMPT_000000.png")
        samples.append(_sample(file, Prompt(match[1], origin=str(file))))
    return samples


def _dpg(directory: Path, prompts: Sequence[Prompt], note: Callable[[str], None]) -> list[Sample]:
    by_item: Mapping[str, Prompt] = {str(prompt.metadata.get("item")): prompt for prompt in prompts}
    samples = []
    for file in _files(directory, note):
        if file.stem not in by_item:
            raise UserError(f"{FLAG} dpg: {file}: no line of the prompt file has the `item` {file.stem}")
        prompt = by_item[file.stem]
        samples += [Sample(f"{file} ({QUARTERS[place]})", prompt, partial(_quarter, file, place)) for place in range(4)]
    return samples


def _quarter(file: Path, place: int) -> Medium:
    """Read one sample of a grid of two by two. Raises MediaError if the sides are odd."""
    medium = read_media(file)
    height, width = medium.tensor.shape[-2:]
    if medium.tensor.dim() != 3 or height % 2 or width % 2:
        raise MediaError(file, f"is not a grid of two by two images: {height} x {width} pixels")
    top, left = (place // 2) * height // 2, (place % 2) * width // 2
    return Medium(medium.tensor[:, top : top + height // 2, left : left + width // 2], medium.notes)


def _sample(file: Path, prompt: Prompt) -> Sample:
    return Sample(str(file), prompt, partial(read_media, file))


def _files(directory: Path, note: Callable[[str], None]) -> list[Path]:
    files = expand([directory], note)
    check_files(files)
    return files


def _numbered(directory: Path) -> list[Path]:
    found = [path for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(found, key=lambda path: natural_order(path.name))


LAYOUTS: Mapping[str, Callable[[Path, Sequence[Prompt], Callable[[str], None]], list[Sample]]] = {
    "geneval": _geneval,
    "dpg": _dpg,
    "numbered": _numbered_files,
    "t2i-compbench": _compbench,
}
"""Name of each layout, and the function that reads a directory."""
