"""`ServeConfig`: everything that a reward file for `dgpo serve` may say."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Int, ShortForm, StrictModel, UseBlock
from dgpo_schemas.sections.rewards import WorkerSection
from dgpo_schemas.service import ServiceLimits

__all__ = ["BatchingSection", "ConnectionsSection", "ServeConfig", "ServedReward", "is_loopback"]

CONNECTIONS = 256
"""Connections that are kept open at a time, unless the file says how many."""
MEMORY_MIB = 4096
"""MiB of all requests under way, unless the file says how many or its limits ask for more."""
FLOAT_BODIES, BYTE_BODIES = 4, 10
"""Times the size of a body that its tensors take in the service: as it came, whole, as tensors, and as the batch.
Tensors of bytes become floats of four times their size."""
BATCHED_PIXEL = 24
"""Bytes that a pixel of an image file takes in the service: three float32, once alone and once in its batch."""
ORIGIN = re.compile(r"https?://[^\s/?#@]+|[a-z][a-z0-9+.-]*-extension://[^\s/?#@]+")


class ServedReward(UseBlock):
    """The reward that is served."""

    worker: WorkerSection | None = Field(
        default=None,
        description="Run it in processes of its own: one that crashes or hangs is started again. Else in this one.",
    )


class BatchingSection(StrictModel):
    """Small requests for media of one shape are scored together, unless a request asks to be scored alone, as training
    runs do: the last bits of a network's output may depend on the size of its batch."""

    max_batch: Int = Field(
        default=16, ge=1, le=100_000, description="Samples up to which requests are joined; 1 joins none."
    )
    max_wait_ms: Float = Field(default=5.0, ge=0, le=10_000, description="Milliseconds to wait for others to join.")


class ConnectionsSection(StrictModel):
    """What a connection may cost. Where there is no room for another one, the one that has waited longest without a
    whole request is closed."""

    max: Int | None = Field(
        default=None,
        ge=8,
        le=65536,
        description="Connections at a time; by default 256, or twice `queue` if that is more. There must be more than "
        "`queue`, or nothing is left for /health.",
    )
    head_kib: Int = Field(default=16, ge=4, le=64, description="KiB of a request's head: its first line and headers.")
    head_seconds: Float = Field(default=10.0, gt=0, le=1e7, description="Seconds in which a request's head must come.")
    body_seconds: Float = Field(
        default=30.0,
        gt=0,
        le=1e7,
        description="Seconds in which a request's body must come; `timeout` bounds it as well.",
    )
    answer_seconds: Float = Field(
        default=60.0, gt=0, le=1e7, description="Seconds in which the caller must take an answer."
    )
    keep_alive_seconds: Float = Field(
        default=75.0,
        gt=0,
        le=1e7,
        description="Seconds that a connection is kept between two requests. Longer than callers keep theirs, so that "
        "none is closed under a request.",
    )


class ServeConfig(StrictModel):
    """A reward file."""

    reward: Annotated[ServedReward, ShortForm("use", "Name of the reward.")] = Field(
        description="What is served: a name, or `use` with `options`."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to compute; `auto` takes CUDA if there is a card, else the CPU."
    )
    threads: Int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads for torch; by default torch decides."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen at; 0.0.0.0 is every one.")
    port: Int = Field(default=8500, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    token_variable: str | None = Field(
        default=None, min_length=1, description="Environment variable that holds the token which callers must send."
    )
    insecure: bool = Field(default=False, description="Listen beyond this machine without a token.")
    origins: list[str] = Field(
        default_factory=list,
        description="Web pages that may ask, by their origin, such as https://example.org; requests that a browser "
        "sends for any other page are refused.",
    )
    limits: ServiceLimits = Field(default_factory=ServiceLimits, description="How much one request may hold.")
    memory_mib: Int | None = Field(
        default=None,
        ge=FLOAT_BODIES,
        le=2**24,
        description="MiB of all requests under way together, the copies counted that are made of them; by default "
        "4096, or what the largest request takes if that is more. Requests beyond it are told to come back. The "
        "reward's own memory is not counted.",
    )
    connections: ConnectionsSection = Field(
        default_factory=ConnectionsSection, description="What a connection may cost."
    )
    batching: BatchingSection = Field(default_factory=BatchingSection, description="How requests are joined.")
    readers: Int = Field(
        default=2, ge=1, le=64, description="Processes that read image files; each request is read by one of them."
    )
    queue: Int = Field(
        default=32,
        ge=1,
        le=10**6,
        description="Requests under way, being read ones included; more are told to come back.",
    )
    timeout: Float = Field(
        default=120.0, gt=0, le=1e7, description="Seconds for one request, its time in the queue included."
    )
    drain_seconds: Float = Field(
        default=30.0,
        ge=0,
        le=1e7,
        description="Seconds that requests under way are given to finish when the service is ended.",
    )

    @model_validator(mode="after")
    def _no_open_doors(self) -> ServeConfig:
        if not is_loopback(self.host) and self.token_variable is None and not self.insecure:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set `token_variable` to the name of an "
                "environment variable that holds a token, or `insecure: true` if everyone who can reach it may use it"
            )
        return self

    @model_validator(mode="after")
    def _room_for_what_is_allowed(self) -> ServeConfig:
        if self.connections.max is not None and self.connections.max <= self.queue:
            raise ValueError(
                f"connections.max: {self.connections.max} must be more than `queue` ({self.queue}), or nothing is left "
                f"for /health; {2 * self.queue} is a good number"
            )
        least = FLOAT_BODIES * self.limits.max_body_mib
        if self.memory_mib is not None and self.memory_mib < least:
            raise ValueError(
                f"memory_mib: {self.memory_mib} has no room for one body of limits.max_body_mib "
                f"({self.limits.max_body_mib}) and its copies: set at least {least}, or lower limits.max_body_mib to "
                f"{self.memory_mib // FLOAT_BODIES}"
            )
        for i, origin in enumerate(self.origins):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"origins.{i}: {origin!r} is no origin; it is a scheme, a host and perhaps a port, without a path: "
                    "https://example.org or http://localhost:3000"
                )
        return self

    @property
    def memory(self) -> int:
        """Bytes of all requests under way together."""
        if self.memory_mib is not None:
            return self.memory_mib * 2**20
        body = self.limits.max_body_mib * 2**20
        images = 2 * body + BATCHED_PIXEL * 1_000_000 * self.limits.max_megapixels
        return max(MEMORY_MIB * 2**20, BYTE_BODIES * body, images)

    @property
    def most_connections(self) -> int:
        """Connections at a time."""
        return self.connections.max or max(CONNECTIONS, 2 * self.queue)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
