"""`ServeConfig`: the schema of a reward file for `dgpo serve`."""

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
"""Default of the maximum number of open connections."""
MEMORY_MIB = 4096
"""Default memory for all requests in progress, in MiB, unless the limits require more."""
FLOAT_BODIES, BYTE_BODIES = 4, 10
"""Memory that a request with tensors takes, as a multiple of its body size, for float and for byte tensors. The body
is held as received chunks, joined, as tensors, and in the batch; byte tensors become floats of four times the size."""
BATCHED_PIXEL = 24
"""Memory that a pixel of an image file takes, in bytes: three float32, once for the image and once in its batch."""
ORIGIN = re.compile(r"https?://[^\s/?#@]+|[a-z][a-z0-9+.-]*-extension://[^\s/?#@]+")


class ServedReward(UseBlock):
    """The reward to serve."""

    worker: WorkerSection | None = Field(
        default=None,
        description="Run the reward in separate worker processes, which are restarted when they crash or hang; "
        "default: in the server process.",
    )


class BatchingSection(StrictModel):
    """Batching of small requests with images of the same shape. A request can opt out, as training runs do, because the
    last bits of a network's output may depend on the batch size."""

    max_batch: Int = Field(
        default=16, ge=1, le=100_000, description="Maximum number of samples per batch; 1 disables batching."
    )
    max_wait_ms: Float = Field(
        default=5.0, ge=0, le=10_000, description="Maximum time in milliseconds to wait for other requests."
    )


class ConnectionsSection(StrictModel):
    """Limits of connections. At the maximum, a new connection replaces the one that has been without a complete request
    for the longest time."""

    max: Int | None = Field(
        default=None,
        ge=8,
        le=65536,
        description="Maximum number of open connections; default: 256, or twice `queue` if that is more. It must be "
        "greater than `queue`, so that /health can always be reached.",
    )
    head_kib: Int = Field(
        default=16, ge=4, le=64, description="Maximum size of the request line and headers together, in KiB."
    )
    head_seconds: Float = Field(
        default=10.0, gt=0, le=1e7, description="Timeout in seconds for receiving the request line and headers."
    )
    body_seconds: Float = Field(
        default=30.0,
        gt=0,
        le=1e7,
        description="Timeout in seconds for receiving the request body; `timeout` applies as well.",
    )
    answer_seconds: Float = Field(
        default=60.0, gt=0, le=1e7, description="Timeout in seconds for sending the response to the client."
    )
    keep_alive_seconds: Float = Field(
        default=75.0,
        gt=0,
        le=1e7,
        description="Time in seconds that an idle connection is kept open. Use a longer time than the clients', so "
        "that no connection is closed while a request is being sent.",
    )


class ServeConfig(StrictModel):
    """A reward file."""

    reward: Annotated[ServedReward, ShortForm("use", "Name of the reward.")] = Field(
        description="Reward to serve: a name, or `use` with `options`."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="Device to run on; `auto` uses CUDA if a GPU is available, otherwise MPS (Apple silicon), and "
        "otherwise the CPU.",
    )
    threads: Int | None = Field(
        default=None, ge=1, le=1024, description="Number of CPU threads for torch; default: torch's own choice."
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 listens on all interfaces."
    )
    port: Int = Field(default=8500, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    token_variable: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the environment variable that holds the token which clients must send.",
    )
    insecure: bool = Field(default=False, description="Accept requests from other machines without a token.")
    origins: list[str] = Field(
        default_factory=list,
        description="Origins of web pages that may send requests, such as https://example.org; requests that a browser "
        "sends for other pages are rejected.",
    )
    limits: ServiceLimits = Field(default_factory=ServiceLimits, description="Limits of a single request.")
    memory_mib: Int | None = Field(
        default=None,
        ge=FLOAT_BODIES,
        le=2**24,
        description="Maximum memory in MiB for all requests in progress, including the copies made of them; default: "
        "4096, or the size of the largest request if that is more. Further requests are rejected as busy. The reward's "
        "own memory is not counted.",
    )
    connections: ConnectionsSection = Field(default_factory=ConnectionsSection, description="Limits of connections.")
    batching: BatchingSection = Field(default_factory=BatchingSection, description="Batching of small requests.")
    readers: Int = Field(
        default=2,
        ge=1,
        le=64,
        description="Number of processes that decode image files; each request is decoded by one of them.",
    )
    queue: Int = Field(
        default=32,
        ge=1,
        le=10**6,
        description="Maximum number of requests in progress, including those being received; further requests are "
        "rejected as busy.",
    )
    timeout: Float = Field(
        default=120.0, gt=0, le=1e7, description="Timeout in seconds for one request, including its time in the queue."
    )
    drain_seconds: Float = Field(
        default=30.0,
        ge=0,
        le=1e7,
        description="Time in seconds for requests in progress to finish when the server shuts down.",
    )

    @model_validator(mode="after")
    def _no_open_doors(self) -> ServeConfig:
        if not is_loopback(self.host) and self.token_variable is None and not self.insecure:
            raise ValueError(
                f"host {self.host} can be reached from other machines; set `token_variable` to the name of an "
                "environment variable that holds a token, or `insecure: true` to accept requests without one"
            )
        return self

    @model_validator(mode="after")
    def _room_for_what_is_allowed(self) -> ServeConfig:
        if self.connections.max is not None and self.connections.max <= self.queue:
            raise ValueError(
                f"connections.max: {self.connections.max} must be greater than `queue` ({self.queue}), so that /health "
                f"can always be reached; a good value is {2 * self.queue}"
            )
        least = FLOAT_BODIES * self.limits.max_body_mib
        if self.memory_mib is not None and self.memory_mib < least:
            raise ValueError(
                f"memory_mib: {self.memory_mib} is too small for one request body of limits.max_body_mib "
                f"({self.limits.max_body_mib}) and its copies; set it to at least {least}, or lower "
                f"limits.max_body_mib to {self.memory_mib // FLOAT_BODIES}"
            )
        for i, origin in enumerate(self.origins):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"origins.{i}: {origin!r} is not an origin; write a scheme, a host and optionally a port, without "
                    "a path, such as https://example.org or http://localhost:3000"
                )
        return self

    @property
    def memory(self) -> int:
        """Maximum memory in bytes for all requests in progress."""
        if self.memory_mib is not None:
            return self.memory_mib * 2**20
        body = self.limits.max_body_mib * 2**20
        images = 2 * body + BATCHED_PIXEL * 1_000_000 * self.limits.max_megapixels
        return max(MEMORY_MIB * 2**20, BYTE_BODIES * body, images)

    @property
    def most_connections(self) -> int:
        """Maximum number of open connections."""
        return self.connections.max or max(CONNECTIONS, 2 * self.queue)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
