"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
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
]  # fmt: skip

RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: --set rollout.group_size=12.", metavar="KEY=VALUE"),
]

TargetPath = Annotated[Path, typer.Argument(help="A run directory, or a run file (its base model).", metavar="RUN")]
ModelName = Annotated[str | None, typer.Option(help="base, policy, ema_fast or ema (the default).")]
Checkpoint = Annotated[str, typer.Option(help="newest, best, or an iteration.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps; by default as configured.")]
Guidance = Annotated[float | None, typer.Option(min=1, help="Guidance scale; by default as configured.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of a run file; of a run directory where its base model is."),
]
Processes = Annotated[
    int,
    typer.Option(min=1, help="Processes on this machine, one a card (or one a few CPU cores); the result is the same."),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples that are drawn at once, which processes share: by default rollout.micro_batch, or else as many "
        "as an iteration has.",
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings laid over the run file, before --set: a name that the backbone brings, such as 16gb, 24gb, 48gb "
        "or 80gb for the memory of a card, or a YAML file.",
        metavar="NAME",
    ),
]


class Resume(StrEnum):
    """How a run is gone on with: it must have a checkpoint, or is begun if it has none."""

    MUST = "must"
    AUTO = "auto"


class Acceptable(StrEnum):
    """What a resume may take as it is."""

    BASE = "base"
    LOGS = "logs"


class AcceptableBase(StrEnum):
    """What reading a run's weights may take as it is."""

    BASE = "base"


Accept = Annotated[
    list[Acceptable] | None,
    typer.Option(
        "--accept",
        help="Resume although something is not as it was: base (other base weights than the run began with), logs "
        "(damaged ones).",
    ),
]
AcceptBase = Annotated[
    list[AcceptableBase] | None,
    typer.Option("--accept", help="base: go on with other base weights than those that the run began with."),
]
