"""Read the published prompt files: tables and JSON lines, with messages that name the file and the line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from dgpo_core.contracts import SuiteFile
from dgpo_core.errors import UserError
from dgpo_schemas.decoding import EncodingError, decode
from dgpo_schemas.problems import nearest

__all__ = ["PromptFile", "json_lines", "table"]

LARGEST = 256 << 20
"""Maximum bytes of a file."""


class PromptFile:
    """A prompt file and its digest. Raises UserError if it cannot be read."""

    def __init__(self, path: str, published: Sequence[str] = ()) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as handle:
                content = handle.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise UserError(f"{path}: is larger than {LARGEST >> 20} MiB; this is no prompt file")
            self.text = decode(content)
        except EncodingError as error:
            raise UserError(error.at(path)) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        digest = hashlib.sha256(content).hexdigest()
        known = digest if digest in published else next(iter(published), None)
        self.file = SuiteFile(self.path.name, digest, known)


def table(file: PromptFile, columns: Sequence[str], delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `file:line` and the cells of each row by column. Raises UserError for a missing column or cell.

    With tabs as delimiters, quotation marks are characters as any other, as in PartiPrompts.tsv.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(io.StringIO(file.text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        found = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = found
        for column in columns:
            if column not in found:
                raise UserError(f"{file.path}:1: has no column {column!r}{nearest(column, found)}; it has {found}")
        for row in reader:
            where = f"{file.path}:{reader.line_num}"
            empty = [column for column in columns if row[column] is None]
            if empty:
                raise UserError(f"{where}: has no {empty[0]}")
            yield where, {column: row[column] for column in columns}
    except csv.Error as error:
        raise UserError(f"{file.path}:{reader.line_num}: not a table: {error}") from error


def json_lines(file: PromptFile, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the object of each line. Raises UserError for other content and for a missing key."""
    for number, line in enumerate(file.text.split("\n"), 1):  # splitlines would split at U+2028 in a text, too
        if not line.strip():
            continue
        where = f"{file.path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        missing = [key for key in keys if key not in row] if isinstance(row, dict) else keys
        if missing:
            raise UserError(f"{where}: has no `{missing[0]}`; it must be an object with {', '.join(keys)}")
        yield where, row
