"""What a reward that runs elsewhere and its caller say to each other, in JSON.

Media and scores travel beside it as safetensors: one blob a message, with the JSON as text under `dgpo` in its
`__metadata__`. A worker process and an HTTP service (`dgpo serve`) speak the same messages.
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
"""Header of a request to a service that the answer repeats, so that it is never taken for another request's."""
LONGEST_KEY = 16
"""Numbers and texts in the key of a sample."""
LONGEST_PART = 200
"""Characters of a text in it."""
SAFETENSORS = "application/vnd.dgpo.safetensors"
"""Media type of a message with tensors; `application/x-safetensors` is understood as well."""


class Answer(StrictModel):
    """What comes back may say more than we know: a newer service of the same protocol may add to it."""

    model_config = ConfigDict(extra="ignore")


class Message(StrictModel):
    """What strangers send: of many mistakes the first is told, and no time is spent on the others."""

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

    kind: Literal["image", "video"] = Field(description="What it is.")
    digest: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of its file. With a request for scores the file's bytes travel once, as a tensor of int8, "
        "`sha256:` and this; a check sends none.",
    )


class PromptMessage(Message):
    """One prompt."""

    text: str = Field(description="The text.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="What the reward needs to know of it.")
    negative: str | None = Field(default=None, description="The text that guidance led away from.")
    media: Annotated[list[MediumMessage], FailFast()] = Field(
        default_factory=list, max_length=MOST_MEDIA, description="What its samples were conditioned on."
    )
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[height, width] of its samples in pixels, where they are known."
    )
    source: str = Field(default="", description="Name of the list of prompts that it belongs to.")
    fps: Float | None = Field(default=None, gt=0, le=1e6, description="Frames a second of its samples.")


def _first_nine(value: Any) -> Any:
    """Media have five dimensions at most; an order of more is none, whatever else it holds."""
    return value[:9] if isinstance(value, list) else value


def _first_parts(value: Any) -> Any:
    """A key has a handful of parts; one of more is none, whatever else it holds."""
    return value[: LONGEST_KEY + 1] if isinstance(value, list) else value


KeyPart = Int | Annotated[str, Field(max_length=LONGEST_PART)]
Key = Annotated[list[KeyPart], Field(min_length=1, max_length=LONGEST_KEY), BeforeValidator(_first_parts)]


class ScoreHeader(Message):
    """The JSON of a request for scores, whose tensor `media` is [B, 3, H, W] or [B, F, 3, H, W]. Beside it lie the
    files that the prompts' media are."""

    protocol: Int = Field(description="Version of the messages.")
    prompts: Annotated[list[PromptMessage], FailFast()] = Field(description="The prompt of each sample.")
    alone: bool = Field(
        default=False,
        description="Never score these samples together with another request's: the last bits of a network's output "
        "may depend on the size of its batch, and a training run wants to be repeatable.",
    )
    order: Annotated[list[Int], BeforeValidator(_first_nine)] | None = Field(
        default=None, description="Order of the media's dimensions in memory, where they do not lie in their own."
    )
    keys: Annotated[list[Key], Field(fail_fast=True)] | None = Field(
        default=None,
        description="For rewards that compare the samples of a prompt: what names each sample, all different. The "
        "request is then one group, whose prompts are all the same.",
    )


class Image(Message):
    """One sample as a file."""

    image: str = Field(
        description="An image or video file in base64, with line breaks or without, padded or not, in the usual or "
        "the URL-safe alphabet; or a data URL."
    )
    prompt: str = Field(default="", description="Its prompt.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="What the reward needs to know of the prompt.")


class ScoreImages(Message):
    """A request for scores of images, as JSON; `multipart/form-data` says the same with files."""

    samples: Annotated[list[Image], FailFast()] = Field(
        description="Images, of any sizes. A reward that compares takes those of one prompt for a group."
    )


class ScoreAnswer(Answer):
    """Scores as JSON, one entry a sample. As safetensors: tensors `values` and `missing`, diagnostics in the JSON."""

    protocol: Int = Field(description="Version of the messages.")
    values: list[float | None] = Field(description="Scores, higher is better; null where missing.")
    missing: list[bool] = Field(description="Whether the sample could not be scored.")
    diagnostics: list[dict[str, Any]] = Field(
        description="What the reward says of each sample; may be empty. Of an image that could not be read: `reason`. "
        "`notes`: what reading a file has changed or left out."
    )


class CheckRequest(Message):
    """Asks whether the reward can score prompts."""

    prompts: Annotated[list[PromptMessage], FailFast()] = Field(description="The prompts.")


class CheckAnswer(Answer):
    """Whether it can."""

    ok: bool = Field(description="Whether every prompt has what the reward needs.")
    message: str | None = Field(default=None, description="What is wrong, naming the prompt.")


class ServiceLimits(StrictModel):
    """How much one request may hold."""

    max_body_mib: Int = Field(default=256, ge=1, le=4096, description="MiB of a request's body.")
    max_side: Int = Field(default=4096, ge=1, le=65536, description="Pixels of an image's longer side.")
    max_frames: Int = Field(default=512, ge=1, le=10**6, description="Frames of a video.")
    image_seconds: Float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="CPU seconds that reading one image or video file may take, and in proportion more for one of "
        "more than 2^24 pixels (4096x4096); one that takes longer is missing.",
    )
    max_samples: Int = Field(default=1024, ge=1, le=10**6, description="Samples of a request.")
    max_megapixels: Int = Field(
        default=128,
        ge=1,
        le=10**6,
        description="Million pixels that the image files of a request unpack to, all frames together; tensors are "
        "bounded by max_body_mib.",
    )
    max_prompts: Int = Field(
        default=10_000,
        ge=1000,
        le=10**6,
        description="Prompts of one check; runs send theirs in parts of at most 1,000.",
    )
    max_json_kib: Int = Field(
        default=1024,
        ge=512,
        le=2048,
        description="KiB of a check, and of the JSON that goes before the tensors of a request for scores; runs send "
        "at most 512 in a check.",
    )


class RewardDescription(Answer):
    """A reward and what it can do."""

    protocol: Int = Field(description="Version of the messages.")
    dgpo: str = Field(description="Version of dgpo there.")
    use: str = Field(description="Name of the reward.")
    options: dict[str, Any] = Field(description="Its options, with the defaults filled in.")
    range: tuple[AnyFloat | None, AnyFloat | None] = Field(description="Smallest and largest value; null: no bound.")
    media: list[Literal["image", "video"]] = Field(description="What it scores.")
    compares: Literal["sample", "group"] = Field(
        default="sample",
        description="Whether it scores each sample by itself, or the samples of one prompt by comparing them.",
    )
    group_by: str | None = Field(default=None, description="Metadata key by which evaluation splits its table.")
    concurrency: Int = Field(default=1, ge=1, description="Batches that may be scored at the same time.")
    limits: ServiceLimits | None = Field(default=None, description="Limits of a request to a service.")


ErrorKind = Literal[
    "request", "token", "origin", "size", "type",
    "busy", "timeout",
    "reward", "user", "plugin",
    "memory", "internal",
]  # fmt: skip


class ErrorDetail(Answer):
    """Why there is no answer."""

    kind: ErrorKind = Field(
        description="What is at fault: the request (malformed, wrong token, from a web page or under a name that may "
        "not ask, too large, of another type), the moment (busy, timeout), the reward (raised, refuses its options or "
        "prompts, is not there), or the service (out of memory, a mistake of its own)."
    )
    message: str = Field(description="In words.")


class ErrorAnswer(Answer):
    """An error."""

    error: ErrorDetail = Field(description="Why there is no answer.")


class StatusAnswer(Answer):
    """Health or readiness."""

    status: Literal["alive", "ready", "loading", "draining", "stuck"] = Field(description="In one word.")


class ServiceMessages(StrictModel):
    """Every JSON message of a reward service, by where it travels."""

    reward: RewardDescription = Field(description="Answer of GET /v1/reward.")
    check_request: CheckRequest = Field(description="Body of POST /v1/check.")
    check_answer: CheckAnswer = Field(description="Its answer.")
    score_header: ScoreHeader = Field(description="JSON within a safetensors body of POST /v1/score.")
    score_images: ScoreImages = Field(description="JSON body of POST /v1/score.")
    score_answer: ScoreAnswer = Field(description="JSON answer of POST /v1/score.")
    status: StatusAnswer = Field(description="Answer of GET /health and GET /ready.")
    error: ErrorAnswer = Field(description="Body of every other answer whose status is 400 or more.")
