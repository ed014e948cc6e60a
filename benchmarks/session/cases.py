"""Models that the session trains for a few steps: published architectures with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dgpo_schemas.run import RunConfig

__all__ = ["CASES", "Case", "configuration"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Case:
    """A model at a size. example: the run file whose adapter it trains; members: of the one group that is drawn, in one
    micro-batch; micro_batch: of the optimizer; steps: of the solver; iterations: the first of them warms up."""

    backbone: Mapping[str, Any]
    example: str
    resolution: int | Sequence[int]
    members: int
    micro_batch: int
    guidance: float = 4.5
    shift: float = 3.0
    steps: int = 2
    iterations: int = 3
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


SD3 = {
    "use": "sd3-random", "checkpoint": "stabilityai/stable-diffusion-3.5-medium",
    "options": {"text_length": 128, "drop_t5": True},
}  # fmt: skip
WAN = {"use": "wan-random", "checkpoint": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "options": {"frames": 33}}
CASES = {
    "sd3.5-m 512": Case(SD3, "sd35-geneval.yaml", 512, members=24, micro_batch=8),
    "sd3.5-m 512, whole groups": Case(SD3, "sd35-geneval.yaml", 512, members=24, micro_batch=24),
    "sd3.5-m 512, exact": Case(
        SD3, "sd35-geneval.yaml", 512, members=24, micro_batch=8,
        settings={"precision": {"adapter": "exact", "norms": "exact"}},
    ),
    "sd3.5-m 512, fast adapter": Case(
        SD3, "sd35-geneval.yaml", 512, members=24, micro_batch=8,
        settings={"precision": {"adapter": "fast", "norms": "exact"}},
    ),
    "sd3.5-m 1024": Case(SD3, "sd35-geneval.yaml", 1024, members=8, micro_batch=2),
    "wan2.1 1.3b": Case(
        WAN, "wan21-1.3b-ocr.yaml", (480, 832), members=2, micro_batch=1, guidance=5.0, steps=1, iterations=2
    ),
}  # fmt: skip
TINY = {"members": 4, "micro_batch": 2, "steps": 2}
"""What a dry run makes of a case's sizes, with a tiny checkpoint."""


def configuration(
    case: Case, output: Path, *, iterations: int, tiny: Path | None = None, more: Mapping[str, Any] | None = None
) -> RunConfig:
    """One group, one training time, and the published settings of the rest. tiny: a checkpoint that takes the model's
    place; more: sections of the run file to change."""
    published = yaml.safe_load((EXAMPLES / case.example).read_text(encoding="utf-8"))
    backbone = dict(case.backbone)
    members, micro_batch, steps, resolution = case.members, case.micro_batch, case.steps, case.resolution
    if tiny is not None:
        backbone["checkpoint"] = str(tiny)
        members, steps, resolution = TINY["members"], TINY["steps"], 64
        micro_batch = members if case.micro_batch == case.members else TINY["micro_batch"]
        backbone["options"] = {name: value for name, value in backbone["options"].items() if name != "frames"}
    sections: dict[str, Any] = {
        "run": {"name": "gpu", "output": str(output), "iterations": iterations},
        "backbone": {**backbone, "dtype": "bfloat16", "lora": published["backbone"]["lora"]},
        "prompts": {"train": {"use": "numbered"}},
        "rollout": {
            "sampler": "flow-dpmpp", "steps": steps, "shift": case.shift, "guidance": case.guidance,
            "group_size": members, "groups": 1, "micro_batch": members, "resolution": resolution,
        },
        "rewards": [{"use": "free"}],
        "objective": {"beta": 100, "kl": 0.02, "clip": 1e-2},
        "timesteps": {"use": "sampler-steps", "count": 1, "t_min": 0.5},
        "optimizer": {"micro_batch": micro_batch},
        "evaluation": {"every": 0, "at_start": False},
        "checkpoints": {"every": 10**6},
        "precision": {"autocast": "bf16"},
    }  # fmt: skip
    for changes in (case.settings, more or {}):
        for section, keys in changes.items():
            sections[section] = keys if isinstance(keys, list) else sections[section] | dict(keys)
    return RunConfig.model_validate(sections)
