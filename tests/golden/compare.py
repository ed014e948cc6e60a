"""What two directories hold, compared: tensors by name, images by pixel, records by key, and all of it byte for byte.

A file that is the same in every byte is looked at no further. Of any other one the differences are named: which tensor,
key or image, and by how much. Paths are those of a side (`<side>`, `<tree>`), so that they do not count.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open

from tests.golden.words import TODAY, Words

__all__ = ["NO_RESULTS", "Allowed", "Difference", "Found", "compare"]

Names: TypeAlias = Mapping[str, str]
"""Paths of a side, and what stands for them."""

NONE: Names = {}

CODEC = 0.1
"""Levels of 255 by which two videos may differ in the mean. Of the same frames, up to 0.04 was seen."""


@dataclass(frozen=True)
class Difference:
    """Of the file `file`, at a tensor or key `where` ("" for the file itself)."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}{': ' if self.where else ''}{self.what}"


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant. Patterns as in shells, `*` for anything; a key that only one side has counts with all
    that it holds."""

    file: str
    where: str
    why: str
    run: str = "*"

    def covers(self, run: str, difference: Difference) -> bool:
        """Whether it is this one."""
        return (
            fnmatch.fnmatchcase(run, self.run)
            and fnmatch.fnmatchcase(difference.file, self.file)
            and fnmatch.fnmatchcase(difference.where, self.where)
        )


NO_RESULTS = (
    Allowed("*/.lock", "", "which process works on a run"),
    Allowed("*/timings.jsonl", "*", "clocks"),
    Allowed("*/clock.json", "*", "clocks"),
    Allowed("*/run.json", "command*", "how the run was started"),
    Allowed("*/run.json", "git*", "what the directory of the command holds"),
    Allowed("*/run.json", "versions*", "the environment, which the sides share; but for the version of dgpo"),
    Allowed("*/run.json", "plugins*", "which plugins are installed, not which are used"),
    Allowed("*/run.json", "sha256", "of all of it"),
    Allowed("*/manifest.json", "dgpo_version", "who wrote it"),
    Allowed("*/manifest.json", "files.*.sha256", "digests of files, which are compared themselves"),
    Allowed("*/manifest.json", "logs*", "digests of logs, which are compared themselves"),
    Allowed("*/manifest.json", "sha256", "of all of it"),
)
"""What is another one each time, or says nothing about a result."""


@dataclass(frozen=True)
class Found:
    """What was compared, and what differs."""

    files: int
    tensors: int
    differences: Sequence[Difference]


def compare(
    before: Path,
    after: Path,
    names_before: Names = NONE,
    names_after: Names = NONE,
    parts: Sequence[str] = (".",),
    words: Words = TODAY,
) -> Found:
    """All files below `parts` of two directories; those of `after` in the words of `before`, which `words` knows."""
    old, new = _files(before, parts), {words.path(file): path for file, path in _files(after, parts).items()}
    differences, tensors = [] if old or new else [Difference(", ".join(parts), "", "nothing was written")], 0
    for file in sorted(old.keys() | new.keys()):
        if file.endswith(".safetensors") and file in old:
            tensors += _count(old[file])
        if file not in new:
            differences.append(Difference(file, "", "is missing after"))
        elif file not in old:
            differences.append(Difference(file, "", "is new"))
        elif (was := old[file].read_bytes()) != (now := new[file].read_bytes()):
            how = _HOW.get(Path(file).suffix, _bytes)
            try:
                found = list(how(_Pair(file, old[file], new[file], was, now, names_before, names_after, words)))
            except Exception as error:  # a file that cannot be read is another one at any rate
                found = [("", f"other bytes, which cannot be compared: {error}")]
            differences += [Difference(file, w, what) for w, what in found if not words.follows(file, w)]
    return Found(len(old.keys() | new.keys()), tensors, differences)


def _files(directory: Path, parts: Sequence[str]) -> dict[str, Path]:
    found = (path for part in parts for path in sorted((directory / part).rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path for path in found}


@dataclass(frozen=True)
class _Pair:
    file: str
    before: Path
    after: Path
    was: bytes
    now: bytes
    names_before: Names
    names_after: Names
    words: Words

    def both(self, read: Callable[[bytes], Any]) -> tuple[Any, Any]:
        return _named(read(self.was), self.names_before), _named(self.translated(read), self.names_after)

    def translated(self, read: Callable[[bytes], Any]) -> Any:
        """What is there now, in the words of before."""
        return self.words.data(self.file, read(self.now))

    def only_words(self, read: Callable[[bytes], Any]) -> bool:
        """Whether nothing but words makes the bytes others: each side is what some way of writing makes of its data,
        and that is the same way."""
        was, now = read(self.was), read(self.now)
        if now == self.words.data(self.file, now):
            return False
        return any(write(was) == self.was and write(now) == self.now for write in WAYS)


def _lines(data: Any) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in data).encode()


WAYS: Sequence[Callable[[Any], bytes]] = (
    _lines,
    lambda data: json.dumps(data, indent=1, ensure_ascii=False).encode(),
    lambda data: json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n",
    lambda data: json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(),
    lambda data: json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n",
)
"""In which records are written."""


def _named(data: Any, names: Names) -> Any:
    """Paths of a side replaced in all texts."""
    if isinstance(data, str):
        for path, name in names.items():
            data = data.replace(path, name)
        return data
    if isinstance(data, dict):
        return {key: _named(value, names) for key, value in data.items()}
    return [_named(value, names) for value in data] if isinstance(data, list) else data


_Where: TypeAlias = Iterator[tuple[str, str]]


# -- records ----------------------------------------------------------------------------------------------------------


def _records(pair: _Pair) -> _Where:
    """Lines of JSON, by their numbers."""

    def read(data: bytes) -> list[Any]:
        return [json.loads(line) for line in data.splitlines()]

    old, new = pair.both(read)
    if len(old) != len(new):
        yield "", f"has {len(new)} lines and had {len(old)}"
    differences = [
        d for number, (a, b) in enumerate(zip(old, new, strict=False), 1) for d in _values(a, b, str(number))
    ]
    yield from differences
    if old == new and not differences and not pair.only_words(read):
        yield "", "the same values, written in another way"


def _json(pair: _Pair) -> _Where:
    yield from _data(pair, json.loads)


def _yaml(pair: _Pair) -> _Where:
    yield from _data(pair, yaml.safe_load)


def _data(pair: _Pair, read: Callable[[bytes], Any]) -> _Where:
    old, new = pair.both(read)
    differences = list(_values(old, new, ""))
    yield from differences
    named = pair.names_before != pair.names_after
    if not differences and not named and not pair.only_words(read):
        yield "", "the same values, written in another way"


def _values(old: Any, new: Any, where: str) -> _Where:
    """Differences of two values, type and order of keys included; of keys that one of them lacks, the outermost."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            here = f"{where}.{key}" if where else str(key)
            if key not in new:
                yield here, f"is missing after; was {_shown(old[key])}"
            elif key not in old:
                yield here, f"is new: {_shown(new[key])}"
            else:
                yield from _values(old[key], new[key], here)
        if [key for key in old if key in new] != [key for key in new if key in old]:
            yield where, "keys in another order"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _values(a, b, f"{where}.{i}" if where else str(i))
    elif type(old) is not type(new) or repr(old) != repr(new):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
        by = f", by {abs(new - old):.3g}" if numbers else ""
        yield where, f"{_shown(old)} became {_shown(new)}{by}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- tensors ----------------------------------------------------------------------------------------------------------


def _count(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return len(list(file.keys()))
    except SafetensorError:  # `_tensors` tells of it
        return 0


def _tensors(pair: _Pair) -> _Where:
    with safe_open(pair.before, "pt") as old, safe_open(pair.after, "pt") as new:
        was, now = _named(old.metadata() or {}, pair.names_before), _named(new.metadata() or {}, pair.names_after)
        # They have no order of their own: safetensors writes them as they come, each time in another way.
        metadata = _values(dict(sorted(was.items())), dict(sorted(now.items())), "")
        differences = [(f"metadata.{where}", what) for where, what in metadata]
        today = {pair.words.tensor(pair.file, name): name for name in sorted(new.keys())}
        before, after = set(old.keys()), set(today)
        differences += [(name, "is missing after") for name in sorted(before - after)]
        differences += [(name, "is new") for name in sorted(after - before)]
        for name in sorted(before & after):
            what = _tensor(old.get_tensor(name), new.get_tensor(today[name]))
            differences += [(name, what)] if what else []
    yield from differences
    renamed = any(name != other for name, other in today.items())  # then the order of names is another one
    if not differences and not renamed and _places(pair.was) != _places(pair.now):
        yield "", "the same tensors, written in another way"


def _places(file: bytes) -> Any:
    """Where the tensors of a safetensors file lie."""
    length = int.from_bytes(file[:8], "little")
    header: dict[str, Any] = json.loads(file[8 : 8 + length])
    header.pop("__metadata__", None)
    return header


def _tensor(old: torch.Tensor, new: torch.Tensor) -> str | None:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype} {list(old.shape)} became {new.dtype} {list(new.shape)}"
    bits = [tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (old, new)]
    if torch.equal(*bits):
        return None
    others = int((bits[0].view(-1, old.element_size()) != bits[1].view(-1, old.element_size())).any(1).sum())
    return f"{others} of {old.numel()} differ, at most by {(new.double() - old.double()).abs().max():.3g}"


# -- images, and the rest ---------------------------------------------------------------------------------------------


def _image(pair: _Pair) -> _Where:
    with Image.open(pair.before) as old, Image.open(pair.after) as new:
        if (old.mode, old.size) != (new.mode, new.size):
            yield "", f"{old.mode} {old.size} became {new.mode} {new.size}"
            return
        was, now = np.asarray(old).astype(np.int64), np.asarray(new).astype(np.int64)
        if (was == now).all():
            yield "", "the same pixels, in other bytes"
        else:
            others = (was != now).reshape(old.size[0] * old.size[1], -1).any(1).sum()
            yield "", f"{others} of {old.size[0] * old.size[1]} pixels differ, at most by {abs(now - was).max()}"


def _video(pair: _Pair) -> _Where:
    """Its encoder does not always write the same bytes of the same frames (x264's mbtree); these are compared in the
    film strip beside it, which loses nothing. What is left for the video is to show them."""
    try:
        import av
    except ImportError:
        yield from _bytes(pair)
        return
    frames, rates = [], []
    for path in (pair.before, pair.after):
        with av.open(str(path)) as file:
            frames.append(np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)]).astype(np.int64))
            rates.append(file.streams.video[0].average_rate)
    (was, now), (old, new) = frames, rates
    if was.shape != now.shape or old != new:
        yield "", f"{list(was.shape)} at {old} a second became {list(now.shape)} at {new}"
    elif (mean := abs(now - was).mean()) > CODEC:
        yield "", f"other frames, by {mean:.3g} of 255 in the mean"


def _bytes(pair: _Pair) -> _Where:
    first = next((i for i, (a, b) in enumerate(zip(pair.was, pair.now, strict=False)) if a != b), None)
    at = min(len(pair.was), len(pair.now)) if first is None else first
    yield "", f"{len(pair.was)} bytes became {len(pair.now)}, others from byte {at} on"


_HOW: Mapping[str, Callable[[_Pair], _Where]] = {
    ".jsonl": _records,
    ".json": _json,
    ".yaml": _yaml,
    ".safetensors": _tensors,
    ".png": _image,
    ".mp4": _video,
}
