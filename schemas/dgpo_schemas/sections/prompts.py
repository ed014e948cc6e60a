"""The section `prompts`: prompt files, prompt generators, and lists of several sources."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dgpo_schemas.base import ANYTIME, NAME, AnyOf, Float, Int, ShortForm, StrictModel
from dgpo_schemas.places import PathText

__all__ = ["STEP", "PromptsBlock", "PromptsSection", "SourceBlock"]


class PromptsBlock(StrictModel):
    """Prompts from a file (`file`) or from a plugin (`use`). Exactly one of the two is required."""

    file: PathText | None = Field(
        default=None,
        description="Path of a .txt file (one prompt per line) or a .jsonl file (one object with `prompt` and metadata "
        "per line). Empty lines are skipped. There are no comments: a line that begins with # is a prompt.",
    )
    use: str | None = Field(default=None, description="Name of a prompt generator provided by a plugin.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the prompt generator.")
    limit: Int | None = Field(default=None, ge=1, le=10**9, description="Use only the first `limit` prompts.")

    @model_validator(mode="after")
    def _one_origin(self) -> PromptsBlock:
        if (self.file is None) == (self.use is None):
            raise ValueError("set exactly one of `file` (a .txt or .jsonl file) and `use` (a prompt generator)")
        if self.file is not None and self.options:
            raise ValueError("`options` require `use`; a prompt file has no options")
        return self


Prompts = Annotated[PromptsBlock, ShortForm("file", "Path of a .txt or .jsonl file.")]


STEP = 1000
"""Weights of sources are multiples of 1 / STEP, so that each source's share of groups is exact over a run of any
length."""


def _in_steps(weight: float) -> float:
    if abs(weight * STEP - round(weight * STEP)) > 1e-6:
        raise ValueError(f"must be a multiple of {1 / STEP:g}; the nearest is {round(weight * STEP) / STEP:g}")
    return weight


def _names_or_weights(value: Any) -> str:
    return "weights" if isinstance(value, dict) else "names"


RewardsOfSource = Annotated[
    Annotated[Annotated[list[str], Field(min_length=1)], Tag("names")]
    | Annotated[Annotated[dict[str, Annotated[Float, Field(ge=-1e9, le=1e9)]], Field(min_length=1)], Tag("weights")],
    Discriminator(_names_or_weights),
    AnyOf(),
]


class SourceBlock(PromptsBlock):
    """One of several prompt sources, each with its own rewards."""

    source: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name of the source in logs and reports: letters, digits, dots, dashes, underscores.",
    )
    weight: Annotated[Float, AfterValidator(_in_steps)] = Field(
        default=1.0,
        ge=1 / STEP,
        le=1000,
        description="Relative share of the groups of an iteration, or of the prompts of an evaluation.",
    )
    rewards: RewardsOfSource | None = Field(
        default=None,
        description="Names of the rewards that score samples of this source, as a list, or each with its weight in "
        "this source; default: all. Monitors score all sources.",
    )
    aggregation: Literal["weighted-sum", "group-normalized"] | None = Field(
        default=None, description="How the rewards of this source are combined; default: scoring.aggregation."
    )
    max_missing: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Maximum fraction of an iteration's samples of this source without a score; default: "
        "scoring.max_missing.",
    )

    def weight_of(self, label: str, weight: float) -> float | None:
        """Return the weight of a reward in this source, None if the source does not use it. weight: its own."""
        if self.rewards is None:
            return weight
        if label not in self.rewards:
            return None
        return self.rewards[label] if isinstance(self.rewards, dict) else weight


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


PromptsOrSources = Annotated[
    Annotated[Prompts, Tag("one")] | Annotated[Annotated[list[SourceBlock], Field(min_length=1)], Tag("several")],
    Discriminator(_one_or_several),
    AnyOf(),
]


class PromptsSection(StrictModel):
    """Prompts for training and prompts held out for evaluation. Each is a file, a generator, or a list of named
    sources."""

    train: PromptsOrSources = Field(description="Prompts to train on.")
    heldout: PromptsOrSources | None = Field(default=None, description="Prompts for evaluation, never trained on.")

    def blocks(self, split: Literal["train", "heldout"]) -> list[PromptsBlock] | list[SourceBlock]:
        """Return the prompt blocks of a split. If the split is a list of sources, each is a SourceBlock."""
        found = self.train if split == "train" else self.heldout
        return found if isinstance(found, list) else [] if found is None else [found]

    def sources(self, split: Literal["train", "heldout"]) -> list[SourceBlock]:
        """Return the sources of a split; empty if the split is not a list of sources."""
        return [block for block in self.blocks(split) if isinstance(block, SourceBlock)]
