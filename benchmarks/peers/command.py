"""`python -m benchmarks peers`: compare, save, write the page."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.page import DOCS, write_page
from benchmarks.peers.comparison import Comparison, compare
from benchmarks.peers.turns import SIDES
from benchmarks.peers.work import WORKS
from benchmarks.record import save
from dgpo_core.errors import UserError
from dgpo_schemas.problems import nearest

__all__ = ["run"]

SOURCES = {"authors": "github.com/Luo-Yihong/DGPO", "flow-factory": "github.com/X-GenGroup/Flow-Factory"}


def run(
    sizes: Annotated[list[str] | None, typer.Argument(help=", ".join(WORKS) + ".", metavar="[SIZE...]")] = None,
    authors: Annotated[Path | None, typer.Option(help=f"A copy of {SOURCES['authors']}.")] = None,
    flow_factory: Annotated[Path | None, typer.Option(help=f"A copy of {SOURCES['flow-factory']}.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Iterations of each side; three times as many short ones.")] = 7,
    output: Annotated[Path, typer.Option(help="Directory of performance.md and of performance/.")] = DOCS,
) -> None:
    """Compare a training iteration with the loops of other projects, on one thread or on the GPU.

    Their code is read from copies that you give. All sides train the same small SD3 with random weights on the same
    prompts, solver steps, groups and training times, in float32, and take turns iteration by iteration. Ten minutes on
    a quiet core, with both.

    Example:

        python -m benchmarks peers --authors ../DGPO --flow-factory ../Flow-Factory
    """
    paths = {key: _checked(key, path) for key, path in (("authors", authors), ("flow-factory", flow_factory)) if path}
    if not paths:
        raise UserError("there is nothing to compare with; give --authors PATH, --flow-factory PATH, or both")
    for size in sizes or []:
        if size not in WORKS:
            raise UserError(f"there is no size {size!r}{nearest(size, list(WORKS))} (there is {', '.join(WORKS)})")
    measured: dict[str, Any] = {"revisions": {key: _revision(path) for key, path in paths.items()}, "works": {}}
    for size in sizes or WORKS:
        typer.echo(f"{size} ...", err=True)
        found = measured["works"][size] = compare(WORKS[size], paths, turns)
        typer.echo("\n".join(lines(found)))
    record = save(output / "performance" / "record.json", "peers", measured)
    typer.echo(str(write_page(record, output)))


def lines(found: Comparison) -> list[str]:
    """Format a comparison as text: medians of seconds, passes, and ratios with their intervals."""
    text = [f"{found.work.name}, {found.turns} turns"]
    for key, seconds in found.seconds.items():
        passes = ", ".join(f"{count} {kind}" for kind, count in found.passes[key].items())
        text.append(f"  {SIDES[key].name:<20}{seconds:>8.2f} s   passes: {passes}")
    for own, peers in found.ratios.items():
        for key, ratios in peers.items():
            shown = ", ".join(f"{part} {r.median:.3f} [{r.low:.3f}, {r.high:.3f}]" for part, r in ratios.items())
            text.append(f"  {SIDES[own].name} / {SIDES[key].name}: {shown}")
    return text


def _checked(key: str, path: Path) -> Path:
    """Return the absolute path. Raises UserError if the peer's code is not there."""
    if not path.is_dir():
        raise UserError(f"--{key}: there is no directory {path}; give a copy of {SOURCES[key]}")
    for file in importlib.import_module(SIDES[key].module).FILES:
        if not (path / file).is_file():
            raise UserError(f"--{key}: {path} is no copy of {SOURCES[key]}: it has no {file}")
    return path.resolve()


def _revision(path: Path) -> str | None:
    """Return the commit of a copy, if it has one: not of a repository that the copy is in, and None without git."""
    words = ["git", "-C", str(path), "rev-parse", "--show-toplevel", "--short=10", "HEAD"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return None
    top, _, commit = told.stdout.rstrip("\n").rpartition("\n")
    return commit if told.returncode == 0 and Path(top).resolve() == path.resolve() else None
