"""`AblationConfig`: everything an ablation file may say: a base run, what to vary in it, and how to compare.

Keys of the run file are dotted, as on the command line (`optimizer.learning_rate`, `rewards.0.weight`). What they may
hold is the run file's own affair: it is checked when the ablation's run files are made, before any of them runs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from dgpo_schemas.base import NAME, Float, Int, StrictModel
from dgpo_schemas.places import PathText

__all__ = ["RESERVED", "AblationConfig", "AxisSection", "EndSection"]

TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*\Z")
RESERVED = {
    "run.name": "it is the cell's own",
    "run.output": "it is the cell's own; `output` of the ablation says where",
    "run.seed": "`seeds` of the ablation says which",
}
"""Keys of the run file that an ablation sets itself."""


def _seeds(value: Any) -> Any:
    """A count of seeds as the list 0, 1, ..."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError("at least one seed is needed: a count such as 5, or a list such as [0, 1, 2]")
    if value > MAX_SEEDS:
        raise ValueError(f"{value} seeds are more than {MAX_SEEDS}; for a single seed write [{value}]")
    return list(range(value))


MAX_SEEDS = 1000
Seeds = Annotated[
    list[Annotated[Int, Field(ge=0, lt=2**63)]],
    BeforeValidator(_seeds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_SEEDS},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
            ]
        }
    ),
]


class AxisSection(StrictModel):
    """One thing to vary: a key of the run file with `values`, or `variants`, which are named bundles of settings."""

    name: str | None = Field(
        default=None, max_length=60, description="Name in tables: letters, digits, blank . _ + -; by default the key."
    )
    key: str | None = Field(
        default=None, min_length=1, description="Dotted key of the run file, plugins and their options included."
    )
    values: list[Any] | None = Field(default=None, min_length=1, description="What the key is set to, one a variant.")
    variants: dict[str, dict[str, Any]] | None = Field(
        default=None, min_length=1, description="Name to settings: dotted keys and their values; {} is the base itself."
    )

    @model_validator(mode="after")
    def _one_form(self) -> AxisSection:
        if self.variants is not None and (self.key is not None or self.values is not None):
            raise ValueError("give `key` with `values`, or `variants`, not both")
        if self.variants is None and (self.key is None or self.values is None):
            raise ValueError("give a `key` with its `values`, or `variants` (named bundles of settings)")
        if self.variants is not None and self.name is None:
            raise ValueError("an axis of `variants` needs a `name`")
        if not TITLE.match(self.title):
            raise ValueError(f"{self.title!r} is no name: letters, digits, blank . _ + - only")
        for name in self.variants or {}:
            if not TITLE.match(name):
                raise ValueError(f"the variant {name!r} has no name: letters, digits, blank . _ + - only")
        return self

    @property
    def title(self) -> str:
        """Name in tables."""
        return str(self.name or self.key)


class EndSection(StrictModel):
    """When a cell ends: the first of these that is reached, or the base's run.iterations."""

    iterations: Int | None = Field(default=None, ge=1, le=10**9, description="Iterations; sets run.iterations.")
    seconds: Float | None = Field(
        default=None, gt=0, description="Training seconds, without evaluations and checkpoints."
    )
    samples: Int | None = Field(default=None, ge=1, le=10**15, description="Samples rolled out.")
    target: Float | None = Field(default=None, description="Held-out score that is enough.")


class AblationConfig(StrictModel):
    """An ablation file."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name of the ablation and of its directory: letters, digits, dot, dash, underscore.",
    )
    output: PathText = Field(default="runs", min_length=1, description="Directory in which the ablation's own is made.")
    base: PathText = Field(min_length=1, description="The run file to vary; relative to the working directory.")
    set: dict[str, Any] = Field(
        default_factory=dict, description="Settings of every variant: dotted keys of the run file and their values."
    )
    axes: list[AxisSection] = Field(min_length=1, description="What to vary.")
    crossing: Literal["product", "each"] = Field(
        default="product", description="Every combination of the axes, or one axis at a time against the base."
    )
    seeds: Seeds = Field(
        description="Seeds: a list, or a count (0, 1, ...). The same seed draws the same prompts and noise everywhere."
    )
    stop: EndSection = Field(default_factory=EndSection, description="When a cell ends.")
    target: Float | None = Field(
        default=None,
        description="Held-out score whose time and samples are compared; by default stop.target. It stops nothing.",
    )
    reward: str | None = Field(
        default=None, min_length=1, description="Evaluated reward that decides; by default the first."
    )
    baseline: str | None = Field(
        default=None, min_length=1, description="Variant that others are compared with; by default the first."
    )
    parallel: Int | None = Field(
        default=None, ge=1, le=1024, description="Cells at once; by default one a CUDA device, or one on the CPU."
    )
    devices: list[Annotated[Int, Field(ge=0, le=1023)]] | None = Field(
        default=None, description="CUDA devices, taken in turn; by default all there are, [] for none."
    )
    threads: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads of a cell; sets run.threads. By default the processors are shared out.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds:
            raise ValueError("at least one seed is needed: a count such as 5, or a list such as [0, 1, 2]")
        twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
        if twice is not None:
            raise ValueError(f"seed {twice} stands here twice")
        return seeds
