"""Print the results of `dgpo score` on stdout, and problems on stderr."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from dgpo_core.system.files import write_text
from dgpo_core.training.score_samples import Result
from dgpo_core.types import Example
from dgpo_lab.scoring.selftest import variation
from dgpo_lab.scoring.table import Row, details, record, table, value_text

__all__ = ["print_results", "print_self_test"]

MOST_REASONS = 20


def print_results(results: Sequence[Result], *, as_json: bool, output: Path | None) -> bool:
    """Print a row or a record per file, and the number of missing scores. Returns whether every file was scored."""
    rows: list[Row] = [(r.name, [value_text(r.value)], details(r)) for r in results]
    values = [r.value for r in results if r.value is not None]
    if len(values) > 1:
        rows.append((f"mean of {len(values)}", [value_text(sum(values) / len(values))], []))
    _print([record(r) for r in results], ("file", ["value"], ["details"]), rows, as_json=as_json, output=output)
    missing = [r for r in results if r.value is None]
    if missing and as_json:  # the table shows the reasons; with JSON, print them on stderr
        for result in missing[:MOST_REASONS]:
            typer.echo(f"{result.name}: {result.reason}", err=True)
    if missing:
        files = "file" if len(results) == 1 else "files"
        typer.echo(f"{len(missing)} of {len(results)} {files} could not be scored", err=True)
    return not missing


def print_self_test(
    label: str,
    examples: Sequence[Example],
    rounds: Sequence[Sequence[Result]],
    failures: Sequence[str],
    *,
    as_json: bool,
    output: Path | None,
) -> None:
    """Print a row or a record per example, of the first round, and the verdict: on stdout if the test passed, else on
    stderr. With several rounds also how much values vary between them."""
    pairs = list(zip(examples, rounds[0], strict=True))
    rows: list[Row] = [(e.name, ["good" if e.good else "bad", value_text(r.value)], details(r)) for e, r in pairs]
    data = {
        "reward": label,
        "passed": not failures,
        "failures": list(failures),
        "examples": [record(r, "example", good=e.good) for e, r in pairs],
    }
    noise, spread = variation(rounds)
    if len(rounds) > 1:
        data |= {"rounds": len(rounds), "noise": _finite(noise), "spread": _finite(spread)}
    _print(data, ("example", ["", "value"], ["details"]), rows, as_json=as_json, output=output)
    for failure in failures:
        typer.echo(f"self-test of {label} failed: {failure}", err=True)
    if len(rounds) > 1 and not as_json:
        typer.echo(
            f"scored {len(rounds)} times: the values of one example have a standard deviation of {noise:.3g}, those of "
            f"different examples of {spread:.3g}"
        )
    if not failures and not as_json:
        scored = [pair for results in rounds for pair in zip(examples, results, strict=True)]
        good = min(r.value for e, r in scored if e.good and r.value is not None)
        bad = max(r.value for e, r in scored if not e.good and r.value is not None)
        typer.echo(f"passed: good examples score at least {good:g}, bad ones at most {bad:g}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(data: Any, header: Row, rows: Sequence[Row], *, as_json: bool, output: Path | None) -> None:
    if output is not None:
        write_text(output, json.dumps(data, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(data, indent=1))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    for line in table(header, rows, width):
        typer.echo(line)
