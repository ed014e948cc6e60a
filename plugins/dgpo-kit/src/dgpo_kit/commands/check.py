"""`dgpo plugins check`: check components against their contract."""

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
    kind: Annotated[str | None, typer.Option("--kind", help="Only components of this kind.")] = None,
    distribution: Annotated[
        str | None, typer.Option("--distribution", help="All components of an installed distribution.", metavar="DIST")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "--options",
            help="Option of the component, or several as a JSON object; repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Check the components of a run file with its options, checkpoint, size and prompts.",
            metavar="RUN.yaml",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts (.txt or .jsonl) for a reward without examples.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint of a backbone, as `backbone.checkpoint` in a run file."),
    ] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show tracebacks of failed checks.")] = False,
) -> None:
    """Check components of plugins against their contract.

    Select components by name, by kind, by distribution, or from a run file. Each requirement is a row: pass, FAIL with
    the violated requirement, or skipped if it does not apply. All checks run in this process, on the CPU.

    Exit code 0: all checks passed. 1: a check failed. 2: wrong arguments, or a component requires more input.

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
    counts = _run(targets, traceback=traceback)
    typer.echo(
        ", ".join(
            f"{counts[status]} {status}" for status in ("failed", "incomplete", "skipped", "passed") if counts[status]
        )
    )
    if counts["failed"] or counts["incomplete"]:
        raise typer.Exit(1 if counts["failed"] else 2)


@dataclass(frozen=True, slots=True)
class _Row:
    """The result of a check: its status, the text to show, and whether to skip the target's remaining checks."""

    status: str
    cell: str
    final: bool = False
    error: BaseException | None = None


def _run(targets: Sequence[Target], *, traceback: bool) -> Counter[str]:
    """Run all checks and print a row for each; return the number of checks by status."""
    import traceback as tracebacks

    cells = [("component", "check"), *((target.name, check.name) for target in targets for check in target.checks)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    counts: Counter[str] = Counter()

    def line(target: str, name: str, cell: str) -> None:
        typer.echo(f"{target:<{widths[0]}}  {name:<{widths[1]}}  {cell}".rstrip())

    line("component", "check", "result")
    for target in targets:
        for check, row in _rows(target.checks):
            counts[row.status] += 1
            line(target.name, check.name, row.cell)
            if traceback and row.status == "failed" and row.error is not None:
                with suppress(Exception):  # the __str__ of the exception may raise
                    typer.echo("".join(tracebacks.format_exception(row.error)), err=True)
    return counts


def _rows(checks: Sequence[Check]) -> Iterator[tuple[Check, _Row]]:
    """Run checks; after a failed build, skip the checks that depend on it."""
    skipped_prefix: str | None = None
    for check in checks:
        if skipped_prefix is not None and check.name.startswith(skipped_prefix):
            continue
        row = _outcome(check)
        yield check, row
        if row.final or (check.name.endswith("builds") and row.status != "passed"):
            skipped_prefix = "" if row.final else check.name.removesuffix("builds")


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
    except NeedsInput as needed:
        return _Row("incomplete", f"needs {_first_line(needed)}", final=True)
    except AssertionError as error:
        return _Row("failed", f"FAIL  {_first_line(error)}", error=error)
    except BaseException as error:  # a component may raise anything
        if pressed():
            raise
        return _Row("failed", f"FAIL  {error_text(error).splitlines()[0]}", error=error)
    return _Row("passed", "pass")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output and warnings of components, which the checks provoke with unusual prompts and images."""
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
    return next(iter(text.strip().splitlines()), "no message")
