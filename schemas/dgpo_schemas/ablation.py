"""`AblationConfig`: the schema of an ablation file: a base run, the settings to vary, and how to compare.

Keys of the run file are dotted, as on the command line (`optimizer.learning_rate`, `rewards.0.weight`). Their values
are validated when the run files of the ablation are generated, before any of them runs.
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
    "run.name": "it is set for each cell",
    "run.output": "it is set for each cell; use `output` of the ablation",
    "run.seed": "use `seeds` of the ablation",
}
"""Keys of the run file that the ablation sets itself, with the reason."""


def _seeds(value: Any) -> Any:
    """Expand a count of seeds to the list 0, 1, ..."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError("at least one seed is needed: a count such as 5, or a list such as [0, 1, 2]")
    if value > MAX_SEEDS:
        raise ValueError(f"must be at most {MAX_SEEDS} seeds; for the single seed {value} write [{value}]")
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
    """One axis of the ablation: a `key` of the run file with its `values`, or `variants`, which are named sets of
    settings."""

    name: str | None = Field(
        default=None,
        max_length=60,
        description="Name of the axis in tables: letters, digits, spaces and . _ + -; default: the key.",
    )
    key: str | None = Field(
        default=None, min_length=1, description="Dotted key of the run file; plugin options are allowed."
    )
    values: list[Any] | None = Field(
        default=None,
        min_length=1,
        description="Values of the key, one per variant. "
        "For a key of a component, such as `backbone`, `rewards`, `timesteps` or `rollout.sampler`, a name alone means "
        "that component with its default options.",
    )
    variants: dict[str, dict[str, Any]] | None = Field(
        default=None,
        min_length=1,
        description="Name of each variant, with its settings as dotted keys and values; {} is the unchanged base.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> AxisSection:
        if self.variants is not None and (self.key is not None or self.values is not None):
            raise ValueError("set `key` with `values`, or `variants`, not both")
        if self.variants is None and (self.key is None or self.values is None):
            raise ValueError("set a `key` with its `values`, or `variants` (named sets of settings)")
        if self.variants is not None and self.name is None:
            raise ValueError("an axis with `variants` needs a `name`")
        if not TITLE.match(self.title):
            raise ValueError(f"{self.title!r} is not a valid name; use only letters, digits, spaces and . _ + -")
        for name in self.variants or {}:
            if not TITLE.match(name):
                raise ValueError(f"{name!r} is not a valid variant name; use only letters, digits, spaces and . _ + -")
        return self

    @property
    def title(self) -> str:
        """Name of the axis in tables."""
        return str(self.name or self.key)


class EndSection(StrictModel):
    """When a cell stops: at the first of these conditions, or at run.iterations of the base."""

    iterations: Int | None = Field(
        default=None, ge=1, le=10**9, description="Number of iterations; sets run.iterations."
    )
    seconds: Float | None = Field(
        default=None, gt=0, description="Training time in seconds, excluding evaluation and saving."
    )
    samples: Int | None = Field(default=None, ge=1, le=10**15, description="Number of generated samples.")
    target: Float | None = Field(default=None, description="Held-out score to reach.")
    in_a_row: Int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Number of evaluations in a row at or above `target` that stop a cell; sets stop.in_a_row.",
    )


class AblationConfig(StrictModel):
    """An ablation file."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name of the ablation and of its directory: letters, digits, dots, dashes, underscores.",
    )
    output: PathText = Field(default="runs", min_length=1, description="Parent directory of the ablation's directory.")
    base: PathText = Field(
        min_length=1, description="Path of the base run file, relative to the current working directory."
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings for every variant, as dotted keys of the run file and their values.",
    )
    axes: list[AxisSection] = Field(min_length=1, description="Settings to vary.")
    crossing: Literal["product", "each"] = Field(
        default="product",
        description="`product`: every combination of the axes. `each`: vary one axis at a time, with the others as in "
        "the base.",
    )
    seeds: Seeds = Field(
        description="Seeds: a list, or a count (5 means 0 to 4). Variants with the same seed use the same prompts and "
        "noise."
    )
    stop: EndSection = Field(default_factory=EndSection, description="When a cell stops.")
    target: Float | None = Field(
        default=None,
        description="Held-out score for comparing the time and the samples needed to reach it; default: stop.target. "
        "It does not stop a run.",
    )
    reward: str | None = Field(
        default=None, min_length=1, description="Evaluated reward to compare variants by; default: the first one."
    )
    baseline: str | None = Field(
        default=None, min_length=1, description="Variant that the others are compared with; default: the first one."
    )
    parallel: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of cells to run at once; default: one per CUDA device, or one on the CPU.",
    )
    devices: list[Annotated[Int, Field(ge=0, le=1023)]] | None = Field(
        default=None, description="CUDA devices to assign to cells in turn; default: all devices; [] uses the CPU."
    )
    threads: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of CPU threads per cell; sets run.threads. Default: the CPU cores divided among the cells.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds:
            raise ValueError("at least one seed is needed: a count such as 5, or a list such as [0, 1, 2]")
        twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
        if twice is not None:
            raise ValueError(f"seed {twice} is listed twice")
        return seeds
