"""Cells that run in this process, and what an ablation leaves behind: for tests of ablations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.main import main

Run = Callable[..., Any]
Write = Callable[..., Path]
HERE = Path("runs/trial")


class Here:
    """A cell's process that is none: it has run in this process when it seems to have started."""

    started: list[tuple[str, bool, Mapping[str, str]]] = []

    def __init__(self, file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> None:
        Here.started.append((str(file.parent.relative_to(HERE / "cells")), resume, environment))
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                main(["train", str(file), *(["--resume"] if resume else [])])
            except SystemExit as end:
                self.code = int(end.code or 0)

    def poll(self) -> int | None:
        return self.code

    wait = poll

    def terminate(self) -> None:
        """It has ended."""

    kill = terminate


def lines(cell: str, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "cells" / cell / log).read_text().splitlines()]


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results.json").read_text())
    return found
