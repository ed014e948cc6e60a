"""Options of this plugin's parts. Light: no torch, no numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dgpo_geneval.metadata import Task
from dgpo_schemas.base import ANYTIME, Float, Int, Options, Use
from dgpo_schemas.places import FileOrTag, PathOrName

__all__ = ["ColorOptions", "GenEvalOptions", "GenEvalPromptsOptions", "Mask2FormerOptions"]


class ColorOptions(Options):
    """The color classifier: open_clip, zero-shot. Built only where a prompt asks for a color and the detector gives
    none. Another model or background is another score."""

    model: str = Field(default="ViT-L-14", min_length=1, description="Name of the architecture in open_clip.")
    pretrained: FileOrTag = Field(
        default="openai",
        min_length=1,
        description="open_clip's tag of the weights, or a local file of them. OpenAI's weights from a file want the "
        "architecture with `-quickgelu` at the end of its name; the tag sees to that itself.",
    )
    background: str = Field(
        default="#999",
        pattern=r"^(#[0-9a-fA-F]{3}|#[0-9a-fA-F]{6}|original)$",
        description="What is painted outside the object's mask: #RGB, #RRGGBB, or `original` for nothing.",
    )
    crop: bool = Field(default=True, description="Whether the image is cropped to the object's box.")
    batch: Int = Field(
        default=64,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Objects in one pass of the image encoder, at most. Those of different images never share one, "
        "so that a color does not depend on other images.",
    )


class GenEvalOptions(Options):
    """What the three GenEval rewards can be told."""

    detector: Use | None = Field(
        default=None,
        description="The object detector: a name, or `use` with `options`. Required: scores depend on it, so none is "
        "chosen for you. `dgpo plugins list` shows the installed ones.",
    )
    colors: ColorOptions | None = Field(
        default=ColorOptions(),
        description="The color classifier, for detectors that name no colors themselves; null for none.",
    )


class Mask2FormerOptions(Options):
    """Which Mask2Former, on what size of image, and what counts as seen."""

    checkpoint: PathOrName = Field(
        default="facebook/mask2former-swin-small-coco-instance",
        min_length=1,
        description="A Hub repository or a directory in transformers' format, trained for instance segmentation.",
    )
    revision: str | None = Field(default=None, description="Revision of the Hub repository: a commit, tag or branch.")
    side: Int = Field(default=800, ge=32, le=16384, description="Shorter side that images are resized to, in pixels.")
    longest: Int = Field(
        default=1333, ge=32, le=16384, description="Longest side; long images get a shorter shorter side."
    )
    channels: Literal["rgb", "bgr"] = Field(
        default="rgb",
        description="Order of the channels that the network is shown. rgb is what it was trained on and what the "
        "benchmark shows its own; bgr exchanges red and blue, as Flow-GRPO's and DGPO's programs do by mistake.",
    )
    batch: Int = Field(
        default=8,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Images whose answers are held on the device at once; more of them keep it busier. Each has its "
        "own pass of the network, so that no other changes a bit of its scores.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the weights; scores are worked out in float32."
    )
    score: Float = Field(
        default=0.3, ge=0, lt=1, description="Detections count if they score above this, compared as float32."
    )
    counting: Float = Field(default=0.9, ge=0, lt=1, description="The same, for prompts of the task `counting`.")
    per_class: Int = Field(default=16, ge=1, le=10**6, description="Detections kept of each class, the best ones.")
    mask: Float = Field(default=0.5, gt=0, lt=1, description="Probability from which a pixel is the object's.")
    subset: bool = Field(
        default=False,
        description="Accept a checkpoint that does not know all 80 classes; prompts about the others are refused.",
    )

    @model_validator(mode="after")
    def _sides(self) -> Mask2FormerOptions:
        if self.longest < self.side:
            raise ValueError(f"longest ({self.longest}) is less than side ({self.side})")
        return self


class GenEvalPromptsOptions(Options):
    """How many prompts, of which tasks, and what is held out."""

    train_count: Int = Field(
        default=50_000, ge=1, le=10**7, description="Training prompts; short of contents, texts repeat."
    )
    heldout: Literal["split", "benchmark"] = Field(
        default="split",
        description="What is held out: `split`, about a fifth of the contents; or `benchmark`, GenEval's own 553 "
        "prompts, to be compared with published numbers. Neither is trained on, in either order of the objects.",
    )
    heldout_count: Int | None = Field(
        default=None,
        ge=6,
        le=10**7,
        description="With `split`: at most so many held-out prompts, an equal share of each task, none twice "
        "(default 600). The benchmark has 553.",
    )
    tasks: dict[Task, Float] = Field(
        default={"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0},
        description="Weights of the tasks among the training prompts; tasks left out get none. The default is "
        "Flow-GRPO's (arXiv 2505.05470).",
    )
    seed: Int = Field(default=0, description="Chooses which prompts and in which order; never what is held out.")

    @field_validator("tasks")
    @classmethod
    def _some_weight(cls, value: dict[Task, float]) -> dict[Task, float]:
        if any(weight < 0 for weight in value.values()) or not sum(value.values()) > 0:
            raise ValueError("weights must be 0 or more, and at least one above 0")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> GenEvalPromptsOptions:
        if self.heldout == "benchmark" and self.heldout_count is not None:
            raise ValueError("heldout_count is for `heldout: split`; the benchmark has 553 prompts (use `limit`)")
        return self
