"""Sections about the run itself: its name and length, when it ends, what it keeps and tells."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, NAME, Float, Int, StrictModel
from dgpo_schemas.places import PathText

__all__ = ["CheckpointsSection", "LoggingSection", "RunSection", "StopSection"]


class RunSection(StrictModel):
    """What the run is called, where it writes and how long it lasts."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        json_schema_extra=ANYTIME,
        description="Name of the run and of its directory: letters, digits, dot, dash, underscore.",
    )
    output: PathText = Field(
        default="runs",
        min_length=1,
        json_schema_extra=ANYTIME,
        description="Directory in which the run's own directory is made.",
    )
    seed: Int = Field(default=0, ge=0, lt=2**63, description="Seed from which every random draw of the run is keyed.")
    iterations: Int = Field(
        ge=1,
        le=10**9,
        json_schema_extra=FROM_THERE_ON,
        description="Iterations to train: each rolls out, scores, weighs and optimizes.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        json_schema_extra=FROM_THERE_ON,
        description="Where to compute; `auto` takes CUDA if there is a card, else the CPU.",
    )
    threads: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        json_schema_extra=FROM_THERE_ON,
        description="CPU threads for torch; by default torch decides. Part of bit-exact resume.",
    )
    process_timeout: Float = Field(
        default=1800.0,
        ge=0.001,
        le=1e7,
        json_schema_extra=ANYTIME,
        description="Seconds that a process waits for another one of the run before it takes it for lost; then the run "
        "ends.",
    )
    shard: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Spread the model's weights over the processes (FSDP2), for a model that does not fit one card; an "
        "adapter stays whole. Without effect with one process.",
    )


class StopSection(StrictModel):
    """Ends of a run before `run.iterations`, which stays what schedules are measured on.

    They are looked at when an iteration ends; the last iteration is then evaluated and saved like any last one.
    """

    seconds: Float | None = Field(
        default=None, gt=0, description="Training seconds, without evaluations and checkpoints."
    )
    samples: Int | None = Field(default=None, ge=1, le=10**15, description="Samples rolled out.")
    target: Float | None = Field(
        default=None, description="Held-out score that is enough; looked at after each evaluation."
    )
    reward: str | None = Field(
        default=None, min_length=1, description="Evaluated reward that `target` is about; by default the first."
    )


class CheckpointsSection(StrictModel):
    """When to save and what to keep."""

    every: Int = Field(
        default=10, ge=1, le=10**9, description="Iterations between checkpoints; the last is always saved."
    )
    keep: Int = Field(
        default=2,
        ge=1,
        le=10**9,
        description="Newest checkpoints to keep; the one before stays until samples have been drawn with the newest.",
    )
    best: bool = Field(default=True, description="Also keep the one with the best evaluation.")


class LoggingSection(StrictModel):
    """Where numbers go besides metrics.jsonl, which is always written."""

    console: bool = Field(default=True, description="Progress on the terminal.")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="Trackers, through accelerate."
    )
    project: str = Field(default="dgpo", min_length=1, description="Project name for trackers that want one.")
