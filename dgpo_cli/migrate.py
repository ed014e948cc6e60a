"""`dgpo migrate`: rewrite files of an earlier version with the names of this version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["migrate"]

Files = Annotated[
    list[Path], typer.Argument(help="Run files, presets, ablation files, files of reward services.", metavar="FILE")
]


def migrate(
    files: Files,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if a file has old names.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here, not in place; for one file.", metavar="FILE")
    ] = None,
) -> None:
    """Rewrite files of dgpo 0.1 with the names of dgpo 0.2.

    Only old names are replaced; comments, order, quotes and blank lines stay. A file without old names is not written.
    If one of the files cannot be rewritten, none is.

    Examples:

        dgpo migrate run.yaml

        dgpo migrate *.yaml --check

        dgpo migrate runs/shapes/config.yaml -o run.yaml
    """
    from dgpo_core.api.output import check_file
    from dgpo_core.errors import UserError
    from dgpo_core.system.files import write_bytes
    from dgpo_schemas.problems import ConfigError, Problem

    if output is not None:
        if len(files) > 1 or check:
            raise UserError("--output: requires a single file and no --check")
        check_file(output)
        if output.exists():
            raise UserError(f"--output {output}: exists; name another file")
    found: list[_Migrated] = []
    problems: list[Problem] = []
    for file in files:
        try:
            found.append(_migrated(file, in_place=output is None and not check))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    changed = [one for one in found if one.changes]
    for one in () if check else changed if output is None else found:
        write_bytes(output or one.file.resolve(), one.content)  # a symbolic link stays: its target is written
    for one in found:
        for change in one.changes:
            typer.echo(change)
        done = "" if check or not one.changes else " replaced"
        typer.echo(one.summary + done + (f" in {output}" if output else ""))
    if check and changed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Migrated:
    file: Path
    content: bytes
    changes: list[str]

    @property
    def summary(self) -> str:
        """Return the file and its number of old names."""
        count = len(self.changes)
        return f"{self.file}: {count or 'no'} old {'name' if count == 1 else 'names'}"


def _migrated(file: Path, *, in_place: bool) -> _Migrated:
    """Compute the new content of a file. Raises ConfigError if it cannot be read or rewritten."""
    from dgpo_core.config.migration.earlier import check_run, is_config_of_run, refusal
    from dgpo_core.config.migration.rewriting import rewrite
    from dgpo_core.config.reading import kind_of
    from dgpo_core.errors import UserError
    from dgpo_schemas.decoding import encode_like
    from dgpo_schemas.loading import read_text
    from dgpo_schemas.sealing import without_seal

    if file.is_dir():
        check_run(file)
        raise UserError(f"{file}: is a directory; name a file")
    text, raw = read_text(file, str(file))
    new = rewrite(text, str(file), lambda document: kind_of(document) or "run")
    if in_place and new.changes and is_config_of_run(file):
        raise refusal(file.parent)
    content = without_seal(new.text) if new.changes else new.text  # the seal's digest is that of the old text
    return _Migrated(file, encode_like(raw, content), new.changes)
