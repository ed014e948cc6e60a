"""`ServeConfig`: everything that a reward file for `dgpo serve` may say."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dgpo_schemas.base import Float, Int, ShortForm, StrictModel, UseBlock
from dgpo_schemas.run import WorkerSection
from dgpo_schemas.service import ServiceLimits

__all__ = ["BatchingSection", "ServeConfig", "ServedReward"]


class ServedReward(UseBlock):
    """The reward that is served."""

    worker: WorkerSection | None = Field(
        default=None,
        description="Run it in processes of its own: one that crashes or hangs is started again. Else in this one.",
    )


class BatchingSection(StrictModel):
    """Small requests for media of one shape are scored together, unless a request asks to be scored alone, as training
    runs do: the last bits of a network's output may depend on the size of its batch."""

    max_batch: Int = Field(default=16, ge=1, description="Samples up to which requests are joined; 1 joins none.")
    max_wait_ms: Float = Field(default=5.0, ge=0, le=10_000, description="Milliseconds to wait for others to join.")


def _name_to_block(value: Any) -> Any:
    """Accept the short form `reward: geneval`."""
    return {"use": value} if isinstance(value, str) else value


class ServeConfig(StrictModel):
    """A reward file."""

    reward: Annotated[ServedReward, BeforeValidator(_name_to_block), ShortForm("Name of the reward.")] = Field(
        description="What is served: a name, or `use` with `options`."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to compute; `auto` takes CUDA if there is a card, else the CPU."
    )
    threads: Int | None = Field(default=None, ge=1, description="CPU threads for torch; by default torch decides.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen at; 0.0.0.0 is every one.")
    port: Int = Field(default=8500, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    token_variable: str | None = Field(
        default=None, min_length=1, description="Environment variable that holds the token which callers must send."
    )
    insecure: bool = Field(default=False, description="Listen beyond this machine without a token.")
    limits: ServiceLimits = Field(default_factory=ServiceLimits, description="How much one request may hold.")
    batching: BatchingSection = Field(default_factory=BatchingSection, description="How requests are joined.")
    readers: Int = Field(
        default=2, ge=1, le=64, description="Processes that read picture files; each request is read by one of them."
    )
    queue: Int = Field(
        default=32, ge=1, description="Requests under way, being read ones included; more are told to come back."
    )
    timeout: Float = Field(default=120.0, gt=0, description="Seconds for one request, its time in the queue included.")
    drain_seconds: Float = Field(
        default=30.0, ge=0, description="Seconds that requests under way are given to finish when the service is ended."
    )

    @model_validator(mode="after")
    def _no_open_doors(self) -> ServeConfig:
        if not is_loopback(self.host) and self.token_variable is None and not self.insecure:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set `token_variable` to the name of an "
                "environment variable that holds a token, or `insecure: true` if everyone who can reach it may use it"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
