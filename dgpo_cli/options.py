"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Preset"]

Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings laid over the run file, before --set: a name that the backbone brings (sd3: 16gb, 24gb, 48gb, "
        "80gb for the memory of a card), or a YAML file.",
        metavar="NAME",
    ),
]
