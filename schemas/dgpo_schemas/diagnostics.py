"""What a reward may say of a sample besides its value, in words that every tool understands.

Diagnostics are JSON-able mappings with whatever keys a reward likes. The keys of `Diagnostics` mean the same for all:
`dgpo score` prints and draws them, logs and reports quote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from dgpo_schemas.base import AnyFloat, Float, Int, StrictModel

__all__ = ["LARGEST_SUBSCORE", "MOST_SUBSCORES", "SUBSCORE", "Clause", "Diagnostics", "Mark", "understood"]

SUBSCORE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of the parts of a score."""
MOST_SUBSCORES = 100
LARGEST_SUBSCORE = 1e100
"""Size of a component's value, as of a score: means of such numbers are numbers."""
Point = tuple[AnyFloat, AnyFloat]


class Mark(StrictModel):
    """Something seen at a place of the image: exactly one of `box` and `polygon`, in pixels, y downwards."""

    text: str = Field(description="What was seen there, in a few words.")
    box: tuple[AnyFloat, AnyFloat, AnyFloat, AnyFloat] | None = Field(default=None, description="x0, y0, x1, y1.")
    polygon: list[Point] | None = Field(default=None, min_length=3, description="Corners, each x, y.")
    ok: bool | None = Field(default=None, description="Whether it is as asked; null where that is not known.")
    frame: Int | None = Field(default=None, ge=0, description="Frame of a video.")

    @model_validator(mode="after")
    def _one_place(self) -> Mark:
        if (self.box is None) == (self.polygon is None):
            raise ValueError("give exactly one of `box` and `polygon`")
        return self


class Clause(StrictModel):
    """One demand of the prompt and whether it is met."""

    text: str = Field(description="The demand and what was found, in one line.")
    ok: bool = Field(description="Whether it is met.")


class Diagnostics(StrictModel):
    """The keys with a common meaning; all others are the reward's own."""

    model_config = ConfigDict(extra="allow")

    reason: str | None = Field(default=None, description="Why the sample could not be scored.")
    marks: list[Mark] = Field(default_factory=list, description="What was seen, and where.")
    subscores: dict[Annotated[str, Field(pattern=SUBSCORE)], Float] = Field(
        default_factory=dict,
        max_length=MOST_SUBSCORES,
        description="What the score is made of, by names of letters, digits, dot, dash and underscore. Their means are "
        "logged beside the reward's.",
    )
    clauses: list[Clause] = Field(default_factory=list, description="Demands of the prompt, one by one.")


def understood(data: Mapping[str, Any]) -> Diagnostics:
    """What a reward's diagnostics say in the keys `marks`, `clauses` and `reason`. Entries that are not in their form
    are left out: a reward may use these names for something of its own."""
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
