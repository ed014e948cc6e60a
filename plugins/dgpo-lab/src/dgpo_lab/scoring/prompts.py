"""Which prompt belongs to which file."""

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
"""Bytes of a metadata file."""
KEY = "file"
"""Key of a .jsonl line that names the file which the line is about."""


def prompts_for(
    files: Sequence[Path],
    *,
    text: str | None,
    metadata: str | None,
    source: Path | None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Prompt]:
    """The prompt of each file, in their order.

    text, metadata: those of every file, the metadata as a JSON object or as `@` and the name of a file that holds one;
    a `prompt` in it stands in for `text`. source: instead, a prompt file with a line for each file, in order or by its
    `file`. Without any of them prompts are empty. `note` is told if files that a shell has listed (1.png, 10.png,
    2.png) get the lines of a prompt file in that order. Raises UserError naming what does not fit.
    """
    if source is not None:
        if text is not None or metadata is not None:
            other = "--prompt" if text is not None else "--metadata"
            raise UserError(f"give --prompts or {other}, not both: a prompt file has the prompt of each file")
        return _from_file(files, source, note)
    reported = _metadata(metadata) if metadata is not None else {}
    if text is not None:
        given(text, "--prompt")
    else:
        text = reported["prompt"] if isinstance(reported.get("prompt"), str) else ""
    origin = "--metadata" if metadata is not None else "--prompt" if text else ""
    return [Prompt(text, reported, origin)] * len(files)


def _metadata(text: str) -> dict[str, Any]:
    where = "--metadata"
    if text.startswith("@"):
        where = f"--metadata {text}"
        try:
            with at_home(Path(text[1:])).open("rb") as handle:
                raw = handle.read(MOST + 1)
            if len(raw) > MOST:
                raise EncodingError(f"is larger than {MOST >> 20} MiB: that is no prompt's metadata")
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
        raise UserError(f"{where}: not JSON that can be read: {error}") from None
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
            'a file, in their order, or a .jsonl file whose lines name theirs: {"file": ..., "prompt": ...}'
        )
    _check_other_names(files, source, prompts)
    found = _out_of_order(files)
    if found is not None:
        first, second = found
        alone = first.parent == second.parent
        note(
            f"--prompts {source}: the files get its lines in the order in which they were given, "
            f"{first.name if alone else first} before {second.name if alone else second}; "
            + ("name their directory for the order of their numbers" if alone else "give them in the order you mean")
        )
    return prompts


def _out_of_order(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first two files that stand in the order of their characters, as shells list them (some take upper and lower
    case as one), and not of their numbers; None if all the files are in another order, which somebody will have
    chosen."""
    if list(files) not in (sorted(files), sorted(files, key=lambda path: [part.casefold() for part in path.parts])):
        return None
    return next((pair for pair in pairwise(files) if _by_numbers(pair[0]) > _by_numbers(pair[1])), None)


def _by_numbers(path: Path) -> list[tuple[Any, ...]]:
    return [natural_order(part) for part in path.parts]


def _check_other_names(files: Sequence[Path], source: Path, prompts: Sequence[Prompt]) -> None:
    """Raise UserError where lines name the files under another key (`file_name`, `image`), and not in their order."""
    names = [_plain(path.name) for path in files]
    for key in prompts[0].metadata if prompts else ():
        values = [prompt.metadata.get(key) for prompt in prompts]
        named = [_bare(value) if isinstance(value, str) else "" for value in values]
        if named == names or sorted(named) != sorted(names):
            continue
        prompt, name, mine = next(
            reported for reported in zip(prompts, named, names, strict=True) if reported[1] != reported[2]
        )
        raise UserError(
            f"{prompt.origin}: its `{key}` names {name}, but by the order of the files it is the line of {mine}; call "
            f"the key `{KEY}` to have lines go to the files that they name"
        )


def _bare(name: str) -> str:
    """A file's name without its directories, also those of another system."""
    return _plain(name).replace("\\", "/").rpartition("/")[2]


def _plain(name: str) -> str:
    """Names that look alike are one: some file systems take accents apart."""
    return unicodedata.normalize("NFC", name)


def _by_name(files: Sequence[Path], source: Path, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Lines may speak of other files too; a name is a path from here or from the prompt file, or a bare file name."""
    by_name: dict[str, Prompt] = {}
    for prompt in prompts:
        name = prompt.metadata.get(KEY)
        if not isinstance(name, str) or not name:
            raise UserError(f"{prompt.origin}: `{KEY}` must name a file, as in other lines")
        bare = replace(prompt, metadata={key: value for key, value in prompt.metadata.items() if key != KEY})
        first = by_name.setdefault(_plain(name), bare)
        if first != bare:
            raise UserError(f"{prompt.origin}: {name} has another prompt in {first.origin}")
    from_here = {_plain(os.path.abspath(os.path.expanduser(name))): prompt for name, prompt in by_name.items()}
    from_source = {_plain(os.path.abspath(source.parent / name)): prompt for name, prompt in by_name.items()}
    found = []
    for path in files:
        place, name = _plain(os.path.abspath(path)), _plain(path.name)
        mine = from_here.get(place) or from_source.get(place) or by_name.get(name)
        if mine is None:
            raise UserError(f"--prompts {source}: no line is about {path}{_like(name, set(by_name), files)}")
        found.append(mine)
    return found


def _like(name: str, reported: set[str], files: Sequence[Path]) -> str:
    """In words, the name in the prompt file that differs by its ending, directory or case, if it is no other file's."""
    others = reported - {_plain(path.name) for path in files}
    stem = Path(name).stem.casefold()
    alike = sorted(other for other in others if Path(_bare(other)).stem.casefold() == stem)
    return f"; one is about {alike[0]}" if alike else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
