"""Sections about rewards: which, where they run, and how they become advantages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from dgpo_schemas.addresses import service_address
from dgpo_schemas.base import ANYTIME, NAME, Float, Int, StrictModel, UseBlock
from dgpo_schemas.places import Program

__all__ = ["AdvantagesSection", "RewardBlock", "ScoringSection", "ServiceSection", "WorkerSection"]


def _address(text: str) -> str:
    try:
        return service_address(text)
    except ValueError as error:
        raise PydanticCustomError("address", "{message}", {"message": str(error)}) from None


Address = Annotated[str, AfterValidator(_address), Field(json_schema_extra={"pattern": r"^https?://[^/\s]+"})]


class WorkerSection(StrictModel):
    """A reward in a process of its own: its own interpreter and packages, restarted when it crashes or hangs."""

    python: Program | None = Field(
        default=None,
        min_length=1,
        description="Interpreter that has dgpo and the reward's plugin installed; by default the one that trains.",
    )
    count: Int = Field(default=1, ge=1, le=64, description="Processes; micro-batches are shared out among them.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables set for the process, such as CUDA_VISIBLE_DEVICES."
    )
    start_timeout: Float = Field(default=300.0, gt=0, le=1e7, description="Seconds to start and load the reward.")
    timeout: Float = Field(
        default=120.0, gt=0, le=1e7, description="Seconds for one micro-batch; then it counts as hung."
    )
    retries: Int = Field(default=3, ge=0, le=1000, description="Times that a lost micro-batch is scored again.")


class ServiceSection(StrictModel):
    """A reward behind HTTP: one or several servers started with `dgpo serve`."""

    urls: list[Address] = Field(min_length=1, description="Addresses, such as http://gpu-7:8500; work is balanced.")
    token_variable: str | None = Field(
        default=None, min_length=1, description="Environment variable that holds the servers' token."
    )
    concurrency: Int = Field(default=2, ge=1, le=64, description="Micro-batches under way at each server.")
    timeout: Float = Field(default=120.0, gt=0, le=1e7, description="Seconds for one micro-batch.")
    retries: Int = Field(default=5, ge=0, le=1000, description="Times that a failed micro-batch is sent again.")


class RewardBlock(UseBlock):
    """One reward model, its share of the total, and where it runs: here, in a `worker` or behind a `service`."""

    weight: Float = Field(default=1.0, ge=-1e9, le=1e9, description="Factor of this reward in the weighted sum.")
    name: str | None = Field(
        default=None,
        pattern=NAME,
        description="Name in logs and reports; by default the name in `use`.",
    )
    worker: WorkerSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Run it in a process of its own."
    )
    service: ServiceSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Ask a server that runs it."
    )

    @model_validator(mode="after")
    def _one_place(self) -> RewardBlock:
        if self.worker is not None and self.service is not None:
            raise ValueError("give `worker` or `service`, not both: a reward runs in one place")
        return self

    @property
    def label(self) -> str:
        """Name in metrics and reports."""
        return self.name or self.use


class ScoringSection(StrictModel):
    """How several rewards become one, and how many scores may be missing."""

    aggregation: Literal["weighted-sum", "group-normalized"] = Field(
        default="weighted-sum",
        description="Sum of weight * value; or each reward first normalized within its group, then summed (GDPO, which "
        "goes with advantages.std: batch).",
    )
    max_missing: Float = Field(
        default=0.2,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Share of an iteration's samples that may lack a score; above it the run stops, its state saved.",
    )
    in_flight: Int = Field(
        default=2,
        ge=0,
        le=10_000,
        json_schema_extra=ANYTIME,
        description="Decoded micro-batches that may wait for each reward, beside those at work, before drawing waits "
        "too. It bounds memory; the numbers are the same.",
    )


class AdvantagesSection(StrictModel):
    """How rewards become group-relative advantages: (reward - group mean) / (std + epsilon)."""

    std: Literal["group", "batch", "none"] = Field(
        default="group", description="Population std of each group, of the whole iteration, or no division."
    )
    epsilon: Float = Field(default=1e-4, gt=0, le=1e6, description="Added to the std.")
    clamp: Float = Field(default=5.0, gt=0, le=1e6, description="Advantages are clamped to [-clamp, clamp].")
    balance: bool = Field(
        default=False,
        description="Scale the weights of a group's two sides to the same sum: the partition function then cancels for "
        "every weighting.",
    )
