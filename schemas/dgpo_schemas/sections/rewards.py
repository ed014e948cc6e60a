"""Sections about rewards: which rewards, where they run, and how advantages are computed from them."""

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
    """Run the reward in separate worker processes, with their own interpreter and packages. A worker that crashes or
    hangs is restarted."""

    python: Program | None = Field(
        default=None,
        min_length=1,
        description="Python interpreter with dgpo and the reward's plugin installed; default: the training "
        "interpreter.",
    )
    count: Int = Field(
        default=1, ge=1, le=64, description="Number of worker processes; micro-batches are distributed among them."
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables to set in the worker process, such as CUDA_VISIBLE_DEVICES.",
    )
    start_timeout: Float = Field(
        default=300.0, gt=0, le=1e7, description="Timeout in seconds for starting the process and loading the reward."
    )
    timeout: Float = Field(
        default=120.0,
        gt=0,
        le=1e7,
        description="Timeout in seconds for scoring one micro-batch; a worker that exceeds it is restarted.",
    )
    retries: Int = Field(
        default=3, ge=0, le=1000, description="Number of retries for a micro-batch whose worker crashed or timed out."
    )


class ServiceSection(StrictModel):
    """Score with a remote reward: one or several HTTP servers started with `dgpo serve`."""

    urls: list[Address] = Field(
        min_length=1, description="Server URLs, such as http://gpu-7:8500; requests are balanced among them."
    )
    token_variable: str | None = Field(
        default=None, min_length=1, description="Name of the environment variable that holds the servers' token."
    )
    concurrency: Int = Field(default=2, ge=1, le=64, description="Maximum number of concurrent requests per server.")
    timeout: Float = Field(default=120.0, gt=0, le=1e7, description="Timeout in seconds for scoring one micro-batch.")
    retries: Int = Field(default=5, ge=0, le=1000, description="Number of retries for a failed micro-batch.")


class RewardBlock(UseBlock):
    """One reward, its weight, and where it runs: in the training process, in a `worker`, or in a `service`."""

    weight: Float = Field(default=1.0, ge=-1e9, le=1e9, description="Weight of this reward in the weighted sum.")
    transform: Literal["rank"] | None = Field(
        default=None,
        description="Replace the values within each group before rewards are combined. `rank`: (rank - 1) / n among "
        "the n fully scored members, ranked from 1 with average ranks for ties. Metrics report the raw values.",
    )
    name: str | None = Field(
        default=None,
        pattern=NAME,
        description="Name of the reward in logs and reports; default: the value of `use`.",
    )
    worker: WorkerSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Run the reward in separate worker processes."
    )
    service: ServiceSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Send requests to servers that run the reward."
    )

    @model_validator(mode="after")
    def _one_place(self) -> RewardBlock:
        if self.worker is not None and self.service is not None:
            raise ValueError("set `worker` or `service`, not both: a reward runs in one place")
        return self

    @property
    def label(self) -> str:
        """Name in metrics and reports."""
        return self.name or self.use


class ScoringSection(StrictModel):
    """How several rewards are combined, and how many scores may be missing."""

    aggregation: Literal["weighted-sum", "group-normalized"] = Field(
        default="weighted-sum",
        description="`weighted-sum`: sum of weight * value. `group-normalized`: normalize each reward within its "
        "group, then sum (GDPO; use it with advantages.std: batch).",
    )
    max_missing: Float = Field(
        default=0.2,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Maximum fraction of an iteration's samples without a score; above it, the run saves its state and "
        "stops.",
    )
    in_flight: Int = Field(
        default=2,
        ge=0,
        le=10_000,
        json_schema_extra=ANYTIME,
        description="Maximum number of decoded micro-batches in the queue of each reward, in addition to those being "
        "scored; when it is full, sampling waits. It limits memory use and does not affect results.",
    )


class AdvantagesSection(StrictModel):
    """Group-relative advantages: (reward - group mean) / (std + epsilon)."""

    std: Literal["group", "batch", "none"] = Field(
        default="group",
        description="Population standard deviation to divide by: of each group, of the whole iteration (`batch`), or "
        "no division.",
    )
    epsilon: Float = Field(default=1e-4, gt=0, le=1e6, description="Constant added to the standard deviation.")
    clamp: Float = Field(default=5.0, gt=0, le=1e6, description="Clamp advantages to [-clamp, clamp].")
    balance: bool = Field(
        default=False,
        description="Scale the weights of each group so that positive and negative weights have the same sum; the "
        "partition function then cancels for every weighting.",
    )
