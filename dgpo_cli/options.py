"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Accept", "AcceptBase", "Overrides", "Preset", "Resume", "RunFile"]

RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: --set rollout.group_size=12.", metavar="KEY=VALUE"),
]

Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings laid over the run file, before --set: a name that the backbone brings (sd3: 16gb, 24gb, 48gb, "
        "80gb for the memory of a card), or a YAML file.",
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
