"""`dgpo plugins check`: does a component keep its contract?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dgpo_kit.checking import Target
    from dgpo_kit.contracts import Check

__all__ = ["check_plugins"]


def check_plugins(
    names: Annotated[list[str] | None, typer.Argument(help="Components, as in `use: NAME`.", metavar="NAME")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only parts of this kind.")] = None,
    distribution: Annotated[
        str | None, typer.Option("--distribution", help="Every part of an installed distribution.", metavar="DIST")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "--options",
            help="An option of the component, or several as JSON; may be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Check components as a run file uses them: options, checkpoint, size, prompts.", metavar="RUN.yaml"
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt or .jsonl file of prompts for a reward that has no examples.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="What a backbone loads: `backbone.checkpoint` of a run file."),
    ] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where a check failed.")] = False,
) -> None:
    """Check that plugin parts keep every promise of their contract.

    Which components: by name, by kind, all of a distribution, or those of a run file. Each promise is a row: pass, FAIL
    with what was promised, or skipped where it does not apply. Everything runs here, on the CPU.

    Exit code 0: everything passed. 1: something failed. 2: a mistake in what was given, or a component that needs more.

    Examples:

        dgpo plugins check brightness

        dgpo plugins check geneval --option detector=shapes

        dgpo plugins check sd3 --checkpoint models/tiny

        dgpo plugins check --distribution dgpo-brightness

        dgpo plugins check --config run.yaml
    """
    from dgpo_core.plugins.registry import get_registry
    from dgpo_kit.checking import choose

    targets = choose(
        get_registry(), names or [], kind=kind, distribution=distribution, options=options or [], config=config,
        prompts=prompts, checkpoint=checkpoint,
    )  # fmt: skip
    found = _run(targets, traceback=traceback)
    typer.echo(
        ", ".join(f"{found[word]} {word}" for word in ("failed", "incomplete", "skipped", "passed") if found[word])
    )
    if found["failed"] or found["incomplete"]:
        raise typer.Exit(1 if found["failed"] else 2)


@dataclass(frozen=True, slots=True)
class _Row:
    """What came of a check: a word to count, a cell to show, and whether the checks that build on it are without
    effect."""

    word: str
    cell: str
    ends: bool = False
    error: BaseException | None = None


def _run(targets: Sequence[Target], *, traceback: bool) -> Counter[str]:
    """Run every check and print its row; how many passed, failed, were skipped or lack something."""
    import traceback as tracebacks

    listed = [("component", "check"), *((target.what, check.name) for target in targets for check in target.checks)]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    found: Counter[str] = Counter()

    def line(what: str, name: str, cell: str) -> None:
        typer.echo(f"{what:<{widths[0]}}  {name:<{widths[1]}}  {cell}".rstrip())

    line("component", "check", "result")
    for target in targets:
        for check, row in _rows(target.checks):
            found[row.word] += 1
            line(target.what, check.name, row.cell)
            if traceback and row.word == "failed" and row.error is not None:
                with suppress(Exception):  # of an exception whose text cannot be had
                    typer.echo("".join(tracebacks.format_exception(row.error)), err=True)
    return found


def _rows(checks: Sequence[Check]) -> Iterator[tuple[Check, _Row]]:
    """Checks with what came of them; of what could not be built, only that."""
    vain: str | None = None
    for check in checks:
        if vain is not None and check.name.startswith(vain):
            continue
        row = _outcome(check)
        yield check, row
        if row.ends or (check.name.endswith("builds") and row.word != "passed"):
            vain = "" if row.ends else check.name.removesuffix("builds")


def _outcome(check: Check) -> _Row:
    import unittest

    from dgpo_core.plugins.isolation import ctrl_c, no_exit
    from dgpo_kit import NeedsInput
    from dgpo_schemas.text import error_text

    pressed: Callable[[], bool] = bool
    try:
        with ctrl_c() as pressed, _quiet(), no_exit(everywhere=True):
            check.run()
    except unittest.SkipTest as skip:
        return _Row("skipped", f"skipped: {skip}")
    except NeedsInput as lack:
        return _Row("incomplete", f"needs {_first_line(lack)}", ends=True)
    except AssertionError as error:
        return _Row("failed", f"FAIL  {_first_line(error)}", error=error)
    except BaseException as error:  # a component may throw anything
        if pressed():
            raise
        return _Row("failed", f"FAIL  {error_text(error).splitlines()[0]}", error=error)
    return _Row("passed", "pass")


@contextmanager
def _quiet() -> Iterator[None]:
    """What a component prints is no result, and what it warns of is provoked: it is shown odd prompts and images."""
    import logging
    import warnings

    from dgpo_core.plugins.isolation import printing_aside

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), printing_aside():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    from dgpo_schemas.text import error_text

    text = error_text(error).removeprefix(type(error).__name__).removeprefix(":")
    return next(iter(text.strip().splitlines()), "without a word")
