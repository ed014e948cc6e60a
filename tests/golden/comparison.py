"""The whole comparison: two sides, made at the same time, and a line for each run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import yaml

from tests.golden import words
from tests.golden.compare import NO_RESULTS, Allowed, Difference, Found, compare
from tests.golden.expected import ALLOWED
from tests.golden.runs import CHECKPOINTS, Run, third_party
from tests.golden.sides import Side, check_out, root

__all__ = ["Maker", "compare_runs", "learned_nothing", "verdict"]

DRIVER = Path(__file__).with_name("driver.py")
SHOWN = 5
"""Files of a run whose first difference is told; that of the metrics comes first."""


class Maker:
    """Makes the runs of a side, in a process of its own."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.errors = (side.directory / "driver.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(DRIVER)],
            cwd=side.directory,
            env=side.environment(third_party(side)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,  # so that it and its runs can be ended together
        )

    def __enter__(self) -> Maker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.errors.close()

    def ask(self, request: Mapping[str, Any]) -> None:
        """Let it begin; `answer` waits for the end."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def make(self, run: Run) -> None:
        """Begin a run."""
        (self.side.directory / f"{run.name}.yaml").write_text(yaml.safe_dump(run.file(self.side)))
        steps = [
            {"arguments": run.arguments(s, self.side), "processes": s.processes, "kill": s.kill} for s in run.steps
        ]
        self.ask({"steps": steps, "log": str(self.side.directory / "logs" / run.name)})

    def answer(self) -> str | None:
        """What went wrong, if anything did."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.side.label}: nothing can be made of it:\n{self.errors.read()[-4000:]}")
        wrong: str | None = json.loads(line)
        return wrong


def verdict(name: str, found: Found, allowed: Sequence[Allowed], used: set[Allowed]) -> tuple[bool, str]:
    """Whether a run is the same on both sides but for what is allowed, and what to say of it. To `used` are added the
    differences that were expected."""
    left, meant = [], 0
    for difference in found.differences:
        if any(one.covers(name, difference) for one in NO_RESULTS):
            continue
        covering = [one for one in allowed if one.covers(name, difference)]
        used |= set(covering)
        meant += bool(covering)
        if not covering:
            left.append(difference)
    more = f", {meant} expected differences" if meant else ""
    if not left:
        return True, f"same ({found.files} files, {found.tensors} tensors{more})"
    files: dict[str, list[Difference]] = {}
    for difference in sorted(left, key=lambda d: (not d.file.endswith("metrics.jsonl"), d.file)):
        files.setdefault(difference.file, []).append(difference)
    lines = [f"  {first}" + (f" (and {len(others)} more)" if others else "") for first, *others in files.values()]
    rest = [f"  and {len(lines) - SHOWN} more files"] if len(lines) > SHOWN else []
    return False, "\n".join([f"different in {len(files)} of {found.files} files{more}", *lines[:SHOWN], *rest])


def learned_nothing(run: Path) -> bool:
    """Whether a run ended with the weights that it began with: then it is the same whatever was broken."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return not last["change_norm"]


def compare_runs(commit: str, runs: Sequence[Run], directory: Path, output: TextIO) -> bool:
    """Make the runs with the files of a commit and with the working tree, and tell of each; True if all are the same.
    Raises ValueError if there is no such commit, or if `directory` holds something already."""

    def on_message(text: str) -> None:
        output.write(text + "\n")
        output.flush()

    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ValueError(f"{directory}: is not empty")
    start = time.monotonic()
    before = Side("before", directory / "tree", directory / "before")
    after = Side("after", root, directory / "after")
    on_message(f"before: {check_out(commit, before.tree)}\nafter: the working tree")
    for side in (before, after):
        side.directory.mkdir()
    used: set[Allowed] = set()
    bad = []
    with Maker(before) as one, Maker(after) as other:
        for maker in (one, other):
            maker.ask({"checkpoints": maker.side.resolved(CHECKPOINTS)})
        for maker in (one, other):
            maker.answer()
        parts = {"checkpoints": ["checkpoints"]} | {r.name: [f"runs/{r.name}", f"out/{r.name}"] for r in runs}
        for name, places in parts.items():
            wrong = []
            if name != "checkpoints":
                run = next(r for r in runs if r.name == name)
                for maker in (one, other):
                    maker.make(run)
                wrong = [f"  {maker.side.label}: {said}" for maker in (one, other) if (said := maker.answer())]
                if not wrong and learned_nothing(after.directory / "runs" / name):
                    wrong = ["  after: nothing was learned, so nothing is compared"]
            if wrong:
                same, said = False, "\n".join(["cannot be made", *wrong])
            else:
                found = compare(
                    before.directory, after.directory, before.names, after.names, places, words.of(before.tree)
                )
                same, said = verdict(name, found, ALLOWED, used)
            bad += [] if same else [name]
            on_message(f"{name}: {said}")
    if len(runs) > 1:
        for unused in (one for one in ALLOWED if one not in used):
            on_message(f"expected, and not seen: {unused.file} {unused.where} ({unused.why})")
    reported = f"{len(bad)} different: {', '.join(bad)}" if bad else "all the same"
    on_message(f"{len(parts)} compared in {time.monotonic() - start:.0f} s, {reported}")
    return not bad
