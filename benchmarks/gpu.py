"""What a GPU reaches of its measured ceiling: SD3.5-M's and Wan 1.3B's architectures with random weights.

    python -m benchmarks gpu                          # all of them, for docs/performance.md
    python -m benchmarks.gpu [CASE ...] [--merge] [--compile] [--output gpu.json]

For a machine with a GPU and nothing else: no weights, no data, no network. An iteration is cut to `groups`
groups, because operations are linear in them; otherwise settings are the published ones: 24 members, 10 steps, guidance
4.5, 4 training times, the example's LoRA. A reward that costs nothing takes the place of GenEval.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.parts import registry_with_components
from dgpo_lab.measuring import lines, measure
from dgpo_schemas.run import RunConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
TARGETS = {"rollout": 0.55, "optimize": 0.50}


@dataclass(frozen=True)
class Case:
    """A model at a size. example: the run file whose adapter it trains; members: G; micro_batch: of the optimizer."""

    backbone: dict[str, Any]
    example: str
    resolution: int | Sequence[int]
    members: int = 24
    micro_batch: int = 8
    guidance: float = 4.5
    shift: float = 3.0


SD3 = {
    "use": "sd3-random", "checkpoint": "stabilityai/stable-diffusion-3.5-medium",
    "options": {"text_length": 128, "drop_t5": True},
}  # fmt: skip
CASES = {
    "sd35-512": Case(SD3, "sd35-geneval.yaml", 512),
    "sd35-1024": Case(SD3, "sd35-geneval.yaml", 1024, micro_batch=2),
    "wan-1.3b": Case(
        {"use": "wan-random", "checkpoint": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "options": {"frames": 33}},
        "wan21-1.3b-ocr.yaml", (480, 832), members=8, micro_batch=1, guidance=5.0,
    ),
}  # fmt: skip


def configuration(case: Case, arguments: argparse.Namespace, output: str) -> RunConfig:
    """The published iteration with fewer groups."""
    members = arguments.members or case.members
    published = yaml.safe_load((EXAMPLES / case.example).read_text(encoding="utf-8"))
    return RunConfig.model_validate(
        {
            "run": {"name": "gpu", "output": output, "iterations": arguments.iterations + 1},
            "backbone": case.backbone | {
                "checkpoint": arguments.checkpoint or case.backbone["checkpoint"], "dtype": "bfloat16",
                "lora": published["backbone"]["lora"], "compile": arguments.compile,
                "gradient_checkpointing": arguments.checkpointing,
            },
            "prompts": {"train": {"use": "numbered"}},
            "rollout": {
                "sampler": "flow-dpmpp", "steps": 10, "shift": case.shift, "guidance": case.guidance,
                "group_size": members, "groups": arguments.groups, "micro_batch": members,
                "resolution": arguments.resolution or case.resolution, "merge_adapter": arguments.merge,
            },
            "rewards": [{"use": "free"}],
            "objective": {"beta": 100, "kl": 0.02, "clip": 1e-2},
            "timesteps": {"use": "sampler-steps", "count": 4, "t_min": 0.5},
            "optimizer": {"micro_batch": arguments.micro_batch or case.micro_batch},
            "evaluation": {"every": 0, "at_start": False},
            "checkpoints": {"every": 10**6},
            "precision": {"autocast": "bf16", "attention": arguments.attention},
        }
    )  # fmt: skip


def run(words: list[str] | None = None) -> dict[str, Any]:
    """Measure each case, print, and return what was measured by case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--checkpoint", help="another model's architecture: its name, or a directory")
    parser.add_argument("--resolution", type=int, help="another side in pixels")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--members", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--merge", action="store_true", help="merge the adapter while sampling")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--output", type=Path, help="a JSON file to write, too")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r} (there is {', '.join(CASES)})")
    registry = registry_with_components()
    found = {}
    for name in arguments.cases or CASES:
        with tempfile.TemporaryDirectory() as directory:
            measured = measure(configuration(CASES[name], arguments, directory), registry, arguments.iterations)
        found[name] = measured
        sys.stdout.write(f"{name}\n" + "\n".join(lines(measured)) + "\n")
        for phase, target in TARGETS.items():
            share = measured["phases"][phase]["fraction"] or 0.0
            sys.stdout.write(f"{phase}: {share:.2f} of the ceiling (target {target:.2f})\n")
        sys.stdout.write("\n")
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    run()
