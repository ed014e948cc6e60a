"""JSON messages between a remote reward and its client.

Images, videos and scores are sent as safetensors: one blob per message, with the JSON message as a string under `dgpo`
in its `__metadata__`. Worker processes and HTTP services (`dgpo serve`) use the same messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, FailFast, Field, model_validator

from dgpo_schemas.base import LONGEST_SIDE, AnyFloat, Float, Int, StrictModel
from dgpo_schemas.prompt_keys import MOST_MEDIA

__all__ = [
    "LONGEST_PART",
    "PROTOCOL",
    "REQUEST",
    "SAFETENSORS",
    "WORKERS",
    "CheckAnswer",
    "CheckRequest",
    "ErrorAnswer",
    "ErrorDetail",
    "MediumMessage",
    "PromptMessage",
    "RewardDescription",
    "ScoreAnswer",
    "ScoreHeader",
    "ScoreImages",
    "ServiceLimits",
    "ServiceMessages",
    "StatusAnswer",
]

PROTOCOL = 3
"""Version of the messages. Both sides must speak the same one."""
WORKERS = 5
"""Version of what a run and its worker processes say to each other: the messages, and how they are numbered."""
REQUEST = "Dgpo-Request"
"""Request header that the response repeats, so that a response is never attributed to another request."""
LONGEST_KEY = 16
"""Maximum number of integers and strings in the key of a sample."""
LONGEST_PART = 200
"""Maximum number of characters of a string in the key of a sample."""
SAFETENSORS = "application/vnd.dgpo.safetensors"
"""Media type of a message with tensors; `application/x-safetensors` is accepted as well."""


class Answer(StrictModel):
    """A response. Unknown keys are ignored, since a newer server with the same protocol version may add some."""

    model_config = ConfigDict(extra="ignore")


class Message(StrictModel):
    """A request from an untrusted client. Only the first unknown key is reported, to bound the cost of validation."""

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_key(cls, data: Any) -> Any:
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields):
            return data
        unknown = next(name for name in data if name not in cls.model_fields)
        return {name: value for name, value in data.items() if name in cls.model_fields or name == unknown}


Side = Annotated[Int, Field(ge=1, le=LONGEST_SIDE)]


class MediumMessage(Message):
    """An image or video that samples were conditioned on."""

    kind: Literal["image", "video"] = Field(description="Type of the file.")
    digest: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the file. A score request contains the bytes of each file once, as an int8 tensor "
        "named `sha256:` followed by this digest; a check request does not contain them.",
    )


class PromptMessage(Message):
    """One prompt."""

    text: str = Field(description="Text of the prompt.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Metadata of the prompt for the reward.")
    negative: str | None = Field(default=None, description="Negative prompt.")
    media: Annotated[list[MediumMessage], FailFast()] = Field(
        default_factory=list,
        max_length=MOST_MEDIA,
        description="Images and videos that the samples are conditioned on.",
    )
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[height, width] of the samples in pixels, if known."
    )
    source: str = Field(default="", description="Name of the prompt source.")
    fps: Float | None = Field(default=None, gt=0, le=1e6, description="Frame rate of the samples, per second.")


def _first_nine(value: Any) -> Any:
    """Truncate the order of dimensions before it is validated; a valid one has at most five entries."""
    return value[:9] if isinstance(value, list) else value


def _first_parts(value: Any) -> Any:
    """Truncate a key before it is validated; one that is too long stays too long."""
    return value[: LONGEST_KEY + 1] if isinstance(value, list) else value


KeyPart = Int | Annotated[str, Field(max_length=LONGEST_PART)]
Key = Annotated[list[KeyPart], Field(min_length=1, max_length=LONGEST_KEY), BeforeValidator(_first_parts)]


class ScoreHeader(Message):
    """JSON header of a score request. The tensor `media` has shape [B, 3, H, W] or [B, F, 3, H, W]; further tensors
    hold the files in the prompts' `media`."""

    protocol: Int = Field(description="Version of the messages.")
    prompts: Annotated[list[PromptMessage], FailFast()] = Field(description="Prompt of each sample, B entries.")
    alone: bool = Field(
        default=False,
        description="Do not batch these samples with other requests. The last bits of a network's output may depend "
        "on the batch size, and training runs must be reproducible.",
    )
    order: Annotated[list[Int], BeforeValidator(_first_nine)] | None = Field(
        default=None, description="Memory order of the dimensions of `media`, if it is not contiguous."
    )
    keys: Annotated[list[Key], Field(fail_fast=True)] | None = Field(
        default=None,
        description="For rewards that compare the samples of a group: a unique key for each sample. The request is "
        "then one group, and all its prompts are the same.",
    )


class Image(Message):
    """One sample as a file."""

    image: str = Field(
        description="An image or video file in base64, with line breaks or without, padded or not, in the usual or "
        "the URL-safe alphabet; or a data URL."
    )
    prompt: str = Field(default="", description="Prompt of the sample.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Metadata of the prompt for the reward.")


class ScoreImages(Message):
    """A request for scores of image files, as JSON. `multipart/form-data` with files is equivalent."""

    samples: Annotated[list[Image], FailFast()] = Field(
        description="Images of any sizes. A reward that compares samples treats those with the same prompt as a group."
    )


class ScoreAnswer(Answer):
    """Scores as JSON, one entry per sample. As safetensors: tensors `values` and `missing`, diagnostics in the JSON."""

    protocol: Int = Field(description="Version of the messages.")
    values: list[float | None] = Field(description="Scores, higher is better; null where missing.")
    missing: list[bool] = Field(description="Whether the sample could not be scored.")
    diagnostics: list[dict[str, Any]] = Field(
        description="Diagnostics of each sample; may be empty. `reason`: why an image could not be read. `notes`: what "
        "was changed or left out when reading the file."
    )


class CheckRequest(Message):
    """A request to check whether the reward can score prompts."""

    prompts: Annotated[list[PromptMessage], FailFast()] = Field(description="Prompts to check.")


class CheckAnswer(Answer):
    """Response to a check request."""

    ok: bool = Field(description="Whether the reward can score every prompt.")
    message: str | None = Field(default=None, description="Error message that names the prompt; null if `ok`.")


class ServiceLimits(StrictModel):
    """Limits of a single request."""

    max_body_mib: Int = Field(default=256, ge=1, le=4096, description="Maximum size of a request body, in MiB.")
    max_side: Int = Field(
        default=4096, ge=1, le=65536, description="Maximum length of the longer side of an image, in pixels."
    )
    max_frames: Int = Field(default=512, ge=1, le=10**6, description="Maximum number of frames of a video.")
    image_seconds: Float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Maximum CPU time in seconds for decoding one image or video file, scaled up proportionally above "
        "2^24 pixels (4096x4096). The score of a file that takes longer is missing.",
    )
    max_samples: Int = Field(default=1024, ge=1, le=10**6, description="Maximum number of samples per request.")
    max_megapixels: Int = Field(
        default=128,
        ge=1,
        le=10**6,
        description="Maximum number of decoded megapixels in the image files of a request, all frames together; "
        "tensors are limited by max_body_mib.",
    )
    max_prompts: Int = Field(
        default=10_000,
        ge=1000,
        le=10**6,
        description="Maximum number of prompts per check request; runs send at most 1,000 at a time.",
    )
    max_json_kib: Int = Field(
        default=1024,
        ge=512,
        le=2048,
        description="Maximum size in KiB of a check request, and of the JSON header of a score request; runs send at "
        "most 512 KiB per check request.",
    )


class RewardDescription(Answer):
    """A reward and its capabilities."""

    protocol: Int = Field(description="Version of the messages.")
    dgpo: str = Field(description="Version of dgpo that runs the reward.")
    use: str = Field(description="Name of the reward.")
    options: dict[str, Any] = Field(description="Options of the reward, including defaults.")
    range: tuple[AnyFloat | None, AnyFloat | None] = Field(
        description="Minimum and maximum score; null means unbounded."
    )
    media: list[Literal["image", "video"]] = Field(description="Types of media that the reward can score.")
    compares: Literal["sample", "group"] = Field(
        default="sample",
        description="`sample`: each sample is scored independently. `group`: the samples of a prompt are compared.",
    )
    group_by: str | None = Field(default=None, description="Metadata key that splits the evaluation table into tasks.")
    concurrency: Int = Field(default=1, ge=1, description="Number of batches that can be scored at the same time.")
    limits: ServiceLimits | None = Field(default=None, description="Limits of a request, if it is a service.")
    provenance: dict[str, Any] = Field(
        default_factory=dict,
        description="What the reward reports of itself besides its options, such as `model`, `revision` and the digest "
        "of its `template`.",
    )


ErrorKind = Literal[
    "request", "token", "origin", "size", "type",
    "busy", "timeout",
    "reward", "user", "plugin",
    "memory", "internal",
]  # fmt: skip


class ErrorDetail(Answer):
    """Details of an error."""

    kind: ErrorKind = Field(
        description="Kind of error. Request errors: malformed (`request`), wrong `token`, disallowed web `origin` or "
        "host name, `size` limit exceeded, unsupported media `type`. Temporary errors: `busy`, `timeout`. Reward "
        "errors: it raised (`reward`), rejected its options or prompts (`user`), or is not installed (`plugin`). "
        "Server errors: out of `memory`, `internal`."
    )
    message: str = Field(description="Error message.")


class ErrorAnswer(Answer):
    """An error response."""

    error: ErrorDetail = Field(description="Details of the error.")


class StatusAnswer(Answer):
    """Response to a health or readiness check."""

    status: Literal["alive", "ready", "loading", "draining", "stuck"] = Field(description="State of the server.")


class ServiceMessages(StrictModel):
    """All JSON messages of a reward service."""

    reward: RewardDescription = Field(description="Response of GET /v1/reward.")
    check_request: CheckRequest = Field(description="Body of POST /v1/check.")
    check_answer: CheckAnswer = Field(description="Response of POST /v1/check.")
    score_header: ScoreHeader = Field(description="JSON header in a safetensors body of POST /v1/score.")
    score_images: ScoreImages = Field(description="JSON body of POST /v1/score.")
    score_answer: ScoreAnswer = Field(description="JSON response of POST /v1/score.")
    status: StatusAnswer = Field(description="Response of GET /health and GET /ready.")
    error: ErrorAnswer = Field(description="Body of all other responses with a status of 400 or above.")
