"""Diagnostics that a reward returns with each score.

Diagnostics are JSON-serializable mappings with arbitrary keys. The keys of `Diagnostics` have a common meaning: `dgpo
score` prints and draws them, and logs and reports include them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from dgpo_schemas.base import AnyFloat, Float, Int, StrictModel

__all__ = ["LARGEST_SUBSCORE", "MOST_SUBSCORES", "SUBSCORE", "Clause", "Diagnostics", "Mark", "understood"]

SUBSCORE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Pattern of subscore names."""
MOST_SUBSCORES = 100
LARGEST_SUBSCORE = 1e100
"""Maximum magnitude of a subscore, as of a score, so that means stay finite."""
Point = tuple[AnyFloat, AnyFloat]


class Mark(StrictModel):
    """An annotated region of the image: exactly one of `box` and `polygon`, in pixels, y downwards."""

    text: str = Field(description="Short label of the region.")
    box: tuple[AnyFloat, AnyFloat, AnyFloat, AnyFloat] | None = Field(
        default=None, description="Bounding box: x0, y0, x1, y1."
    )
    polygon: list[Point] | None = Field(default=None, min_length=3, description="Vertices, each x, y.")
    ok: bool | None = Field(default=None, description="Whether it matches the prompt; null if unknown.")
    frame: Int | None = Field(default=None, ge=0, description="Frame index, for a video.")

    @model_validator(mode="after")
    def _one_place(self) -> Mark:
        if (self.box is None) == (self.polygon is None):
            raise ValueError("set exactly one of `box` and `polygon`")
        return self


class Clause(StrictModel):
    """A requirement of the prompt, and whether it is met."""

    text: str = Field(description="The requirement and the finding, in one line.")
    ok: bool = Field(description="Whether the requirement is met.")


class Diagnostics(StrictModel):
    """Keys of diagnostics with a common meaning. Other keys are specific to the reward."""

    model_config = ConfigDict(extra="allow")

    reason: str | None = Field(default=None, description="Why the sample could not be scored.")
    marks: list[Mark] = Field(default_factory=list, description="Annotated regions of the image.")
    subscores: dict[Annotated[str, Field(pattern=SUBSCORE)], Float] = Field(
        default_factory=dict,
        max_length=MOST_SUBSCORES,
        description="Components of the score by name (letters, digits, dots, dashes, underscores). Their means are "
        "logged with the reward's.",
    )
    clauses: list[Clause] = Field(default_factory=list, description="Requirements of the prompt.")


def understood(data: Mapping[str, Any]) -> Diagnostics:
    """Parse the keys `marks`, `clauses` and `reason` of a reward's diagnostics. Entries in another form are skipped,
    since a reward may use these names for something else."""
    found = {
        "marks": list(_valid(Mark, data.get("marks"))),
        "clauses": list(_valid(Clause, data.get("clauses"))),
        "reason": reason if isinstance(reason := data.get("reason"), str) and reason.strip() else None,
    }
    return Diagnostics.model_validate(found)


def _valid(model: type[StrictModel], entries: object) -> Iterator[StrictModel]:
    for entry in entries if isinstance(entries, list | tuple) else ():
        try:
            yield model.model_validate(entry)
        except ValidationError:
            continue
