"""Assign prompts to files."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dgpo_cli.paths import at_home
from dgpo_core.data.checks import given
from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_lab.scoring.listing import natural_order
from dgpo_schemas.decoding import EncodingError, decode
from dgpo_schemas.problems import show
from dgpo_schemas.prompts import loads, unreadable

__all__ = ["prompts_for"]

MOST = 16 << 20
"""Maximum bytes of a metadata file."""
KEY = "file"
"""Key of a .jsonl line that names its file."""


def prompts_for(
    files: Sequence[Path],
    *,
    text: str | None,
    metadata: str | None,
    source: Path | None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Prompt]:
    """Return the prompt of each file, in order.

    text, metadata: the prompt and metadata of every file; metadata is a JSON object, or `@` and the name of a file that
    contains one, and its `prompt` is used if `text` is None. source: a prompt file with one line per file instead, in
    order or matched by the key `file`. Without any of these, prompts are empty. `note` receives a message if files in
    shell order (1.png, 10.png, 2.png) get the lines of a prompt file in that order. Raises UserError for mismatches.
    """
    if source is not None:
        if text is not None or metadata is not None:
            other = "--prompt" if text is not None else "--metadata"
            raise UserError(f"--prompts, {other}: give only one of them; a prompt file has a prompt for each file")
        return _from_file(files, source, note)
    data = _metadata(metadata) if metadata is not None else {}
    if text is not None:
        given(text, "--prompt")
    else:
        text = data["prompt"] if isinstance(data.get("prompt"), str) else ""
    origin = "--metadata" if metadata is not None else "--prompt" if text else ""
    return [Prompt(text, data, origin)] * len(files)


def _metadata(text: str) -> dict[str, Any]:
    where = "--metadata"
    if text.startswith("@"):
        where = f"--metadata {text}"
        try:
            with at_home(Path(text[1:])).open("rb") as handle:
                raw = handle.read(MOST + 1)
            if len(raw) > MOST:
                raise EncodingError(f"is larger than {MOST >> 20} MiB, the limit for metadata")
            text = decode(raw)
        except EncodingError as error:
            raise UserError(error.at(where)) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        data = loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise UserError(f"{where}: not JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{where}: the JSON cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f'{where}: must be a JSON object, such as {{"tag": "colors"}}, not {show(data)}')
    reason = unreadable(data)
    if reason:
        raise UserError(f"{where}: {reason}")
    return data


def _from_file(files: Sequence[Path], source: Path, note: Callable[[str], None]) -> list[Prompt]:
    prompts = load_file(source)
    named = [prompt.metadata.get(KEY) for prompt in prompts]
    if any(name is not None for name in named):
        return _by_name(files, source, prompts)
    if len(prompts) != len(files):
        raise UserError(
            f"--prompts {source}: has {_count(len(prompts), 'prompt')} for {_count(len(files), 'file')}; give one line "
            'per file, in the order of the files, or a .jsonl file that names them: {"file": ..., "prompt": ...}'
        )
    _check_other_names(files, source, prompts)
    unordered = _out_of_order(files)
    if unordered is not None:
        first, second = unordered
        alone = first.parent == second.parent
        note(
            f"--prompts {source}: its lines are assigned in the given order of the files, "
            f"{first.name if alone else first} before {second.name if alone else second}; "
            + ("for numeric order, give the directory" if alone else "give the files in the intended order")
        )
    return prompts


def _out_of_order(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return the first two files that are in shell order (by characters, with or without case), not in numeric order.

    Returns None if the files are not in shell order, because then their order is intended.
    """
    if list(files) not in (sorted(files), sorted(files, key=lambda path: [part.casefold() for part in path.parts])):
        return None
    return next((pair for pair in pairwise(files) if _by_numbers(pair[0]) > _by_numbers(pair[1])), None)


def _by_numbers(path: Path) -> list[tuple[Any, ...]]:
    return [natural_order(part) for part in path.parts]


def _check_other_names(files: Sequence[Path], source: Path, prompts: Sequence[Prompt]) -> None:
    """Raise UserError if lines name the files under another key (`file_name`, `image`) and in a different order."""
    names = [_plain(path.name) for path in files]
    for key in prompts[0].metadata if prompts else ():
        values = [prompt.metadata.get(key) for prompt in prompts]
        named = [_bare(value) if isinstance(value, str) else "" for value in values]
        if named == names or sorted(named) != sorted(names):
            continue
        prompt, name, expected = next(row for row in zip(prompts, named, names, strict=True) if row[1] != row[2])
        raise UserError(
            f"{prompt.origin}: its `{key}` names {name}, but in the order of the files this line belongs to "
            f"{expected}; rename the key to `{KEY}` to match lines to files by name"
        )


def _bare(name: str) -> str:
    """Return a file name without its directories, for POSIX and Windows paths."""
    return _plain(name).replace("\\", "/").rpartition("/")[2]


def _plain(name: str) -> str:
    """Normalize the accents of a name, because some file systems decompose them."""
    return unicodedata.normalize("NFC", name)


def _by_name(files: Sequence[Path], source: Path, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Match lines to files by name; lines for other files are ignored.

    A name is a path relative to the working directory or to the prompt file, or a bare file name.
    """
    by_name: dict[str, Prompt] = {}
    for prompt in prompts:
        name = prompt.metadata.get(KEY)
        if not isinstance(name, str) or not name:
            raise UserError(f"{prompt.origin}: `{KEY}` must name a file, as in the other lines")
        bare = replace(prompt, metadata={key: value for key, value in prompt.metadata.items() if key != KEY})
        first = by_name.setdefault(_plain(name), bare)
        if first != bare:
            raise UserError(f"{prompt.origin}: {name} has a different prompt in {first.origin}")
    from_here = {_plain(os.path.abspath(os.path.expanduser(name))): prompt for name, prompt in by_name.items()}
    from_source = {_plain(os.path.abspath(source.parent / name)): prompt for name, prompt in by_name.items()}
    matched = []
    for path in files:
        absolute, name = _plain(os.path.abspath(path)), _plain(path.name)
        prompt_of_file = from_here.get(absolute) or from_source.get(absolute) or by_name.get(name)
        if prompt_of_file is None:
            raise UserError(f"--prompts {source}: no line for {path}{_like(name, set(by_name), files)}")
        matched.append(prompt_of_file)
    return matched


def _like(name: str, names: set[str], files: Sequence[Path]) -> str:
    """Suggest a name in the prompt file that differs in extension, directory or case only, and is no other file's."""
    others = names - {_plain(path.name) for path in files}
    stem = Path(name).stem.casefold()
    alike = sorted(other for other in others if Path(_bare(other)).stem.casefold() == stem)
    return f"; there is one for {alike[0]}" if alike else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
