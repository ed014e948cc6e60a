"""The files of a toy run in the working directory: for tests of commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOY = Path("runs/toy")
PHASES = r"rollout \S+s  score \S+s  (?:compute advantages \S+s  )?optimize \S+s"
LINE = rf"\[(\d)/4\] reward (\S+) ± (\S+)  kl (\S+)  σ\(S\) (\S+)  {PHASES}  left \S+s"


def logs(name: str = "metrics.jsonl", run: Path = TOY) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def scores() -> list[dict[str, Any]]:
    """Records of evaluations, without those of the media's statistics."""
    return [record for record in logs("evaluations.jsonl") if record["role"] != "statistic"]


def media(iteration: int, names: Sequence[str] = ("saturation", "edge_density", "dark_pixels")) -> str:
    """The line on the media of an evaluation."""
    records = [r for r in logs("evaluations.jsonl") if (r["iteration"], r["role"]) == (iteration, "statistic")]
    found = {record["reward"]: record["value"] for record in records}
    assert list(found) == list(names)
    return "  image statistics: " + ", ".join(f"{name.replace('_', ' ')} {found[name]:.3f}" for name in names)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def result(run: Path = TOY) -> dict[str, bytes]:
    """What a run computed: logs without clocks, and the last weights and optimizer state."""
    kept = ("metrics.jsonl", "evaluations.jsonl")
    newest = max((run / "checkpoints").iterdir())
    return {name: (run / name).read_bytes() for name in kept} | {
        path.name: path.read_bytes() for path in newest.glob("*.safetensors")
    }
