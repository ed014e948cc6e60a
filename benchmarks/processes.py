"""Two gloo processes on two cores against one process on one core: seconds of an iteration, as a ratio of one run.

    python benchmarks/processes.py [RUN.yaml] [--iterations N]

Both are started as a person does, with one thread each, and take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = 1.6
HERE = Path(__file__).parents[1]


def seconds(
    file: Path, directory: Path, processes: int, iterations: int, turn: int, shard: bool = False
) -> list[float]:
    """Of every iteration but the first."""
    name = f"p{processes}-{turn}{'-spread' if shard else ''}"
    settings = {
        "run.output": directory, "run.name": name, "run.shard": str(shard).lower(), "run.threads": 1,
        "run.iterations": iterations + 1,
        "evaluation.at_start": "false", "evaluation.every": 0, "prompts.heldout.limit": 2,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "dgpo_cli", "train", str(file), "--quiet", "--processes", str(processes), *words]
    subprocess.run(command, check=True)
    lines = (directory / name / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines[1:]]


def measure(file: Path, iterations: int, turns: int) -> dict[str, float]:
    """Seconds of an iteration: the median of one process, of two, and of two with the model spread over them."""
    kinds = {"one": (1, False), "two": (2, False), "two, sharded": (2, True)}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(turns):
            for kind, (processes, shard) in kinds.items():
                found[kind] += seconds(file, Path(directory), processes, iterations, turn, shard)
    return {kind: statistics.median(values) for kind, values in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="One process against two.")
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "examples" / "quickstart.yaml")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    found = measure(arguments.file, arguments.iterations, arguments.turns)
    one, two, sharded = found.values()
    sys.stdout.write(
        f"an iteration: one process {one:.2f} s, two {two:.2f} s: {one / two:.2f}x (target {TARGET}x); two with the "
        f"model spread over them {sharded:.2f} s: {one / sharded:.2f}x\n"
    )


if __name__ == "__main__":
    main()
