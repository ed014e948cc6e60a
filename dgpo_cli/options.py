"""Options shared by several commands."""

from __future__ import annotations

import math
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Accept",
    "AcceptBase",
    "Checkpoint",
    "Force",
    "Guidance",
    "MicroBatch",
    "ModelName",
    "Output",
    "Overrides",
    "Preset",
    "Processes",
    "Resume",
    "RunFile",
    "Set",
    "Steps",
    "TargetPath",
    "number_option",
]  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Callback of options for numbers: refuse nan, which no `min` or `max` refuses, and infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


number_option = partial(typer.Option, callback=_finite)
"""An option for a finite number."""
RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: --set rollout.group_size=12.", metavar="KEY=VALUE"),
]

TargetPath = Annotated[Path, typer.Argument(help="A run directory, or a run file (its base model).", metavar="RUN")]
ModelName = Annotated[str | None, typer.Option(help="base, policy, ema_fast or ema (the default).")]
Checkpoint = Annotated[str, typer.Option(help="newest, best, or an iteration.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Solver steps (num_inference_steps in diffusers); default: as configured.")
]
Guidance = Annotated[
    float | None, number_option(min=1, help="Guidance scale (guidance_scale in diffusers); default: as configured.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of a run file; for a run directory, only the path of its base model."),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1, help="Processes on this machine: one per GPU, or one per few CPU cores. Results do not change."
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Samples drawn at once, divided among the processes; default: rollout.micro_batch."),
]

Preset = Annotated[
    list[str] | None,
    typer.Option(
        help="Settings applied to the run file before --set: a preset of the backbone, such as 16gb, 24gb, 48gb or "
        "80gb for the GPU memory, or a YAML file. May be repeated.",
        metavar="NAME",
    ),
]


class Resume(StrEnum):
    """Resume modes: the run must have a checkpoint, or starts if it has none."""

    MUST = "must"
    AUTO = "auto"


class Acceptable(StrEnum):
    """Differences that --accept allows when a run is resumed."""

    BASE = "base"
    LOGS = "logs"


class AcceptableBase(StrEnum):
    """Differences that --accept allows when weights are loaded."""

    BASE = "base"


Accept = Annotated[
    list[Acceptable] | None,
    typer.Option(
        "--accept",
        help="Resume despite a difference: base (other base weights than at the start of the run), logs (damaged "
        "logs).",
    ),
]
AcceptBase = Annotated[
    list[AcceptableBase] | None,
    typer.Option("--accept", help="base: accept other base weights than at the start of the run."),
]
