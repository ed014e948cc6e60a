"""Options of the GenEval rewards. Light: no torch, no numpy."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import Options, Use

__all__ = ["GenEvalOptions"]


class GenEvalOptions(Options):
    """What the three GenEval rewards can be told."""

    detector: Use | None = Field(
        default=None,
        description="The object detector: a name, or `use` with `options`. Required: scores depend on it, so none is "
        "chosen for you. `dgpo plugins list` shows the installed ones.",
    )
