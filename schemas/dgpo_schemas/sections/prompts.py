"""The section `prompts`: files, generators, and several sources of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dgpo_schemas.base import NAME, AnyOf, Float, Int, ShortForm, StrictModel
from dgpo_schemas.places import PathText

__all__ = ["STEP", "PromptsBlock", "PromptsSection", "SourceBlock"]


class PromptsBlock(StrictModel):
    """Prompts from a file or from a plugin's generator: exactly one of `file` and `use`."""

    file: PathText | None = Field(
        default=None, description="A .txt file (one prompt a line) or .jsonl file (objects with `prompt` and metadata)."
    )
    use: str | None = Field(default=None, description="Name of a prompt source.")
    options: dict[str, Any] = Field(default_factory=dict, description="The prompt source's own options.")
    limit: Int | None = Field(default=None, ge=1, le=10**9, description="Take only the first so many prompts.")

    @model_validator(mode="after")
    def _one_origin(self) -> PromptsBlock:
        if (self.file is None) == (self.use is None):
            raise ValueError("give exactly one of `file` (a .txt or .jsonl file) and `use` (a prompt source)")
        if self.file is not None and self.options:
            raise ValueError("`options` belong to a prompt source (`use`), a file has none")
        return self


Prompts = Annotated[PromptsBlock, ShortForm("file", "A .txt or .jsonl file.")]


STEP = 1000
"""Weights of sources are whole numbers of 1 / STEP: shares of groups are then exact, however long a run is."""


def _in_steps(weight: float) -> float:
    if abs(weight * STEP - round(weight * STEP)) > 1e-6:
        raise ValueError(f"must be in steps of {1 / STEP:g}; the nearest is {round(weight * STEP) / STEP:g}")
    return weight


class SourceBlock(PromptsBlock):
    """One of several sources of prompts, each with rewards of its own."""

    source: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name in logs and reports: letters, digits, dot, dash, underscore.",
    )
    weight: Annotated[Float, AfterValidator(_in_steps)] = Field(
        default=1.0,
        ge=1 / STEP,
        le=1000,
        description="Its share of an iteration's groups, or of the prompts of an evaluation, among those of all "
        "sources.",
    )
    rewards: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Labels of the rewards that its samples are scored with; by default all. Guards score all sources.",
    )


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


PromptsOrSources = Annotated[
    Annotated[Prompts, Tag("one")] | Annotated[Annotated[list[SourceBlock], Field(min_length=1)], Tag("several")],
    Discriminator(_one_or_several),
    AnyOf(),
]


class PromptsSection(StrictModel):
    """Prompts to train on and prompts held out for evaluation: a file or a generator, or a list of them, called
    sources, each with a name."""

    train: PromptsOrSources = Field(description="Prompts to train on.")
    heldout: PromptsOrSources | None = Field(default=None, description="Prompts for evaluation, never trained on.")

    def blocks(self, split: Literal["train", "heldout"]) -> list[PromptsBlock] | list[SourceBlock]:
        """Those of a split; of several sources a SourceBlock each."""
        found = self.train if split == "train" else self.heldout
        return found if isinstance(found, list) else [] if found is None else [found]

    def sources(self, split: Literal["train", "heldout"]) -> list[SourceBlock]:
        """Those of a split; none where it is no list."""
        return [block for block in self.blocks(split) if isinstance(block, SourceBlock)]
