"""Options of this plugin's components. Light: no torch, no numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dgpo_geneval.metadata import Task
from dgpo_schemas.base import ANYTIME, Float, Int, Options, Use
from dgpo_schemas.places import FileOrTag, PathOrName, PathText

__all__ = ["ColorOptions", "GenEvalOptions", "GenEvalPromptsOptions", "GenEvalSuiteOptions"]
__all__ += ["Mask2FormerOptions"]


class ColorOptions(Options):
    """The color classifier: zero-shot open_clip. It is built only if a prompt asks for a color and the detector does
    not name colors. Scores depend on the model and the background."""

    model: str = Field(default="ViT-L-14", min_length=1, description="Name of the open_clip architecture.")
    pretrained: FileOrTag = Field(
        default="openai",
        min_length=1,
        description="Pretrained tag of open_clip, or a local weights file. OpenAI's weights from a file require the "
        "architecture with the suffix `-quickgelu`; the tag selects that activation itself.",
    )
    background: str = Field(
        default="#999",
        pattern=r"^(#[0-9a-fA-F]{3}|#[0-9a-fA-F]{6}|original)$",
        description="Color painted outside the object's mask: #RGB, #RRGGBB, or `original` to keep the pixels.",
    )
    crop: bool = Field(default=True, description="Whether to crop the image to the object's box.")
    batch: Int = Field(
        default=64,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Maximum number of objects per forward pass of the image encoder. Objects of different images "
        "never share a pass, so that a color does not depend on other images.",
    )


class GenEvalOptions(Options):
    """Options of the three GenEval rewards."""

    detector: Use | None = Field(
        default=None,
        description="Object detector: a name, or `use` with `options`. Required, without a default, because scores "
        "depend on it. `dgpo plugins list` shows the installed detectors.",
    )
    colors: ColorOptions | None = Field(
        default=ColorOptions(),
        description="Color classifier, for detectors that do not name colors themselves; null disables it.",
    )


class GenEvalSuiteOptions(GenEvalOptions):
    """Options of the suite: those of the reward `geneval-official`, and the prompts."""

    file: PathText | None = Field(
        default=None,
        description="The benchmark's prompts/evaluation_metadata.jsonl, or a part of it; by default the 553 prompts "
        "are generated as by its authors.",
    )


class Mask2FormerOptions(Options):
    """Checkpoint, input size and thresholds of Mask2Former."""

    checkpoint: PathOrName = Field(
        default="facebook/mask2former-swin-small-coco-instance",
        min_length=1,
        description="Hub repository or directory in transformers' format, trained for instance segmentation.",
    )
    revision: str | None = Field(default=None, description="Revision of the Hub repository: a commit, tag or branch.")
    side: Int = Field(default=800, ge=32, le=16384, description="Shorter side of resized images, in pixels.")
    longest: Int = Field(
        default=1333, ge=32, le=16384, description="Maximum longer side, in pixels; limits elongated images."
    )
    channels: Literal["rgb", "bgr"] = Field(
        default="rgb",
        description="Channel order of the network's input. rgb is the order of its training and of the benchmark; bgr "
        "swaps red and blue, as Flow-GRPO's and DGPO's programs do by mistake.",
    )
    batch: Int = Field(
        default=8,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Images queued on the device at once; higher values improve utilization. Each image has its own "
        "forward pass, so its scores do not depend on other images.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Data type of the weights; scores are computed in float32."
    )
    score: Float = Field(
        default=0.3, ge=0, lt=1, description="Score threshold: detections must exceed it, compared in float32."
    )
    counting: Float = Field(default=0.9, ge=0, lt=1, description="Score threshold for prompts of the task `counting`.")
    per_class: Int = Field(
        default=16, ge=1, le=10**6, description="Maximum detections per class, highest scores first."
    )
    mask: Float = Field(default=0.5, gt=0, lt=1, description="Probability above which a pixel belongs to the object.")
    subset: bool = Field(
        default=False,
        description="Accept a checkpoint without all 80 classes; prompts about missing classes are rejected.",
    )

    @model_validator(mode="after")
    def _sides(self) -> Mask2FormerOptions:
        if self.longest < self.side:
            raise ValueError(f"longest ({self.longest}) is less than side ({self.side})")
        return self


class GenEvalPromptsOptions(Options):
    """Number of prompts, task weights and held-out split."""

    train_count: Int = Field(
        default=50_000, ge=1, le=10**7, description="Number of training prompts; texts repeat if a task runs out."
    )
    heldout: Literal["split", "benchmark"] = Field(
        default="split",
        description="Held-out prompts: `split`, about a fifth of the contents; or `benchmark`, GenEval's own "
        "553 prompts, for comparison with published results. Training excludes them, in either order of the objects.",
    )
    heldout_count: Int | None = Field(
        default=None,
        ge=6,
        le=10**7,
        description="With `split`: maximum number of held-out prompts, in equal shares per task, without duplicates "
        "(default 600). The benchmark has 553.",
    )
    tasks: dict[Task, Float] = Field(
        default={"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0},
        description="Sampling weights of the tasks among the training prompts; omitted tasks have weight 0. The "
        "default is Flow-GRPO's (arXiv 2505.05470).",
    )
    seed: Int = Field(default=0, description="Seed of the choice and order of prompts; does not affect the split.")

    @field_validator("tasks")
    @classmethod
    def _some_weight(cls, value: dict[Task, float]) -> dict[Task, float]:
        if any(weight < 0 for weight in value.values()) or not sum(value.values()) > 0:
            raise ValueError("weights must be 0 or more, and at least one above 0")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> GenEvalPromptsOptions:
        if self.heldout == "benchmark" and self.heldout_count is not None:
            raise ValueError("heldout_count requires `heldout: split`; the benchmark has 553 prompts (use `limit`)")
        return self
