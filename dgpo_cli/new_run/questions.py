"""Questions on a terminal, each asked again until its answer is valid."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping

import typer

from dgpo_core.errors import UserError
from dgpo_schemas.problems import INDEX
from dgpo_schemas.text import clean

__all__ = ["choose", "text"]


def choose(name: str, about: str, choices: Mapping[str, str], default: str | None, check: Callable[[str], None]) -> str:
    """Ask for one of the choices, by name or number; show each with its summary.

    check: raises UserError for a wrong answer. It may accept answers that are not listed.
    """
    _introduce(about)
    width = _width()
    longest = max(map(len, choices), default=0)
    for number, (choice, summary) in enumerate(choices.items(), 1):
        start = f"  {number:>2}  {choice:<{longest}}  "
        room = max(width - len(start), 12)
        short = textwrap.shorten(clean(" ".join(summary.split())), room, placeholder=" …", break_on_hyphens=False)
        typer.echo(start + short, err=True)

    def numbered(answer: str) -> str:
        number = int(answer) if INDEX.fullmatch(answer) else 0
        found = list(choices)[number - 1] if 1 <= number <= len(choices) else answer
        check(found)
        return found

    return _until_valid(name, default, numbered)


def text(name: str, about: str, default: str | None, check: Callable[[str], None] | None = None) -> str:
    """Ask for a text. An empty answer is the default, which may be empty."""
    _introduce(about)

    def same(answer: str) -> str:
        if check is not None and answer:
            check(answer)
        return answer

    return _until_valid(name, default, same)


def _width() -> int:
    return max(min(shutil.get_terminal_size().columns, 80), 40)


def _introduce(about: str) -> None:
    typer.echo("\n" + textwrap.fill(clean(" ".join(about.split())), _width(), break_on_hyphens=False), err=True)


def _until_valid(name: str, default: str | None, valid: Callable[[str], str]) -> str:
    while True:
        answer = str(typer.prompt(name, default=default, show_default=bool(default), err=True)).strip()
        try:
            return valid(answer)
        except UserError as error:
            typer.echo(str(error), err=True)
