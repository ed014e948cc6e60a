"""SD3.5-M's architecture with random weights at the published settings: what a card reaches of its measured ceiling.

    python benchmarks/gpu.py [--resolution 512 1024] [--groups 2] [--checkpoint NAME] [--output gpu.json]

One command for a machine with a card and nothing else: no weights, no data, no network. An iteration is cut to `groups`
groups of 24, because operations are linear in them; 10 steps, guidance 4.5, 4 training times, LoRA of rank 64, as
published. A reward that costs nothing takes the place of GenEval.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo_cli.bench import _lines, _measure
from dgpo_core.contracts import PromptSource, RewardModel
from dgpo_core.hookspecs import Part, hookimpl
from dgpo_core.registry import Registry
from dgpo_core.types import Prompt, Scores
from dgpo_schemas.run import RunConfig
from dgpo_sd3.options import SD3Options

TARGETS = {"roll out": 0.55, "optimise": 0.50}


class Free(RewardModel):
    """The mean of the first pixels: different for every sample, and no work."""

    range = (-1e6, 1e6)

    def score(self, media: Tensor, prompts: Any) -> Scores:
        values = media[:, 0, :4, :4].flatten(1).mean(1).float()
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))


class Numbered(PromptSource):
    """Prompts that differ."""

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(f"picture {i}") for i in range(64)]


class Plugin:
    """The random model and what stands in for prompts and rewards."""

    @hookimpl
    def dgpo_backbones(self) -> list[Part]:
        return [Part("sd3-random", "SD3 with random weights", "dgpo_sd3.sketch:SD3Sketch", SD3Options)]

    @hookimpl
    def dgpo_rewards(self) -> list[Part]:
        return [Part("free", "No work", f"{__name__}:Free")]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Part]:
        return [Part("numbered", "Numbered prompts", f"{__name__}:Numbered")]


def configuration(arguments: argparse.Namespace, resolution: int, output: Path) -> RunConfig:
    """The published iteration with fewer groups."""
    return RunConfig.model_validate(
        {
            "run": {"name": f"gpu-{resolution}", "output": str(output), "iterations": arguments.iterations + 1},
            "backbone": {
                "use": "sd3-random", "checkpoint": arguments.checkpoint, "dtype": "bfloat16",
                "lora": {"rank": 64, "alpha": 128}, "options": {"text_length": 128, "drop_t5": True},
                "compile": arguments.compile, "gradient_checkpointing": arguments.checkpointing,
            },
            "prompts": {"train": {"use": "numbered"}},
            "rollout": {
                "sampler": "flow-dpmpp", "steps": 10, "shift": 3.0, "guidance": 4.5, "group_size": arguments.members,
                "groups": arguments.groups, "micro_batch": arguments.members, "resolution": resolution,
            },
            "rewards": [{"use": "free"}],
            "objective": {"beta": 100, "kl": 0.02, "clip": 1e-2},
            "timesteps": {"use": "sampler-steps", "count": 4, "t_min": 0.5},
            "optimiser": {"micro_batch": arguments.micro_batch},
            "evaluation": {"every": 0, "at_start": False},
            "checkpoints": {"every": 10**6},
            "precision": {"autocast": "bf16"},
        }
    )  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Measure each resolution and print."""
    parser = argparse.ArgumentParser(description="SD3.5-M with random weights on this machine's card.")
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--checkpoint", default="stabilityai/stable-diffusion-3.5-medium", help="whose architecture")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args(words)
    registry = Registry()
    registry.register(Plugin(), distribution="benchmarks")
    import tempfile

    found = {}
    for resolution in arguments.resolution:
        with tempfile.TemporaryDirectory() as directory:
            measured = _measure(configuration(arguments, resolution, Path(directory)), registry, arguments.iterations)
        found[str(resolution)] = measured
        sys.stdout.write(f"{resolution}x{resolution}\n" + "\n".join(_lines(measured)) + "\n")
        for verb, target in TARGETS.items():
            share = measured["verbs"][verb]["fraction"] or 0.0
            sys.stdout.write(f"{verb}: {share:.2f} of the ceiling (target {target:.2f})\n")
        sys.stdout.write("\n")
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
