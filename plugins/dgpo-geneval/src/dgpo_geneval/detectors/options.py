"""Options of the detectors of boxes. Light: no torch, no numpy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dgpo_geneval.classes import CLASSES
from dgpo_schemas.base import ANYTIME, Float, Int, Options
from dgpo_schemas.places import PathOrName, PathText

__all__ = ["BoxOptions", "DetrOptions", "GroundingDinoOptions", "OwlOptions", "YoloxOptions"]

Score = Annotated[
    Float,
    Field(
        ge=0,
        lt=1,
        description="Score threshold: detections must exceed it, compared in float32. Belongs to the checkpoint: "
        "`dgpo detector-thresholds` chooses it from labeled pictures.",
    ),
]
Counting = Annotated[Float, Field(ge=0, lt=1, description="Score threshold for prompts of the task `counting`.")]
Overlap = Annotated[
    Float | None,
    Field(
        gt=0,
        lt=1,
        description="Intersection over union above which the worse of two boxes of one class is dropped; null keeps "
        "both.",
    ),
]
Revision = Annotated[str | None, Field(description="Revision of the Hub repository: a commit, tag or branch.")]


class BoxOptions(Options):
    """Thresholds of a detector of boxes."""

    score: Score = 0.3
    counting: Counting = 0.3
    overlap: Overlap = None
    per_class: Int = Field(
        default=16, ge=1, le=10**6, description="Maximum detections per class, highest scores first."
    )
    color_box: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of a box's width and height, around its center, that the color classifier sees; the rest is "
        "painted over like the pixels outside a mask. Less than 1 hides background in the corners of boxes.",
    )


class YoloxOptions(BoxOptions):
    """An ONNX file of the YOLOX layout, trained on COCO."""

    file: PathText = Field(
        min_length=1,
        description="ONNX file as YOLOX's tools/export_onnx.py writes it: input [1, 3, H, W], output [1, N, 85].",
    )
    decoded: bool = Field(
        default=False,
        description="Whether the file was exported with --decode_in_inference, so that its boxes are in pixels.",
    )
    counting: Counting = 0.5
    overlap: Overlap = 0.45
    threads: Int = Field(
        default=1, ge=1, le=1024, json_schema_extra=ANYTIME, description="Threads of onnxruntime for an image."
    )


class CheckpointOptions(BoxOptions):
    """A checkpoint in transformers' format, on the device of the run."""

    revision: Revision = None
    processor: Literal["torchvision", "pil"] = Field(
        default="torchvision",
        description="Backend of transformers' preprocessing. torchvision resizes floats; pil rounds to 8 bits before "
        "and after resizing, as most published numbers do. Scores differ slightly.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Data type of the weights; scores are computed in float32."
    )


class DetrOptions(CheckpointOptions):
    """A detector with a fixed list of classes: DETR, YOLOS, RT-DETR, D-FINE, DEIMv2, RF-DETR, LW-DETR, ..."""

    checkpoint: PathOrName = Field(
        default="PekingU/rtdetr_r50vd",
        min_length=1,
        description="Hub repository or directory in transformers' format, of any AutoModelForObjectDetection.",
    )
    score: Score = 0.5
    counting: Counting = 0.5
    subset: bool = Field(
        default=False,
        description="Accept a checkpoint without all 80 classes; prompts about missing classes are rejected.",
    )


class OpenVocabularyOptions(CheckpointOptions):
    """A detector that is told in words what to look for."""

    classes: list[str] = Field(
        default=list(CLASSES),
        min_length=1,
        description="Names of all classes to look for, GenEval's by default. The list is the same for all prompts, "
        "because scores of a class depend on the others.",
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        value = [" ".join(name.lower().split()) for name in value]
        if not all(value) or len(set(value)) < len(value):
            raise ValueError("class names must not be empty and must differ")
        return value


class GroundingDinoOptions(OpenVocabularyOptions):
    """Grounding DINO and MM-Grounding-DINO."""

    checkpoint: PathOrName = Field(
        default="IDEA-Research/grounding-dino-tiny",
        min_length=1,
        description="Hub repository or directory in transformers' format.",
    )
    score: Score = 0.3

    @field_validator("classes")
    @classmethod
    def _no_periods(cls, value: list[str]) -> list[str]:
        for name in value:
            if "." in name or "?" in name:
                raise ValueError(f"{name!r}: a period or question mark separates classes in Grounding DINO's text")
        return value


class OwlOptions(OpenVocabularyOptions):
    """OWLv2."""

    checkpoint: PathOrName = Field(
        default="google/owlv2-base-patch16-ensemble",
        min_length=1,
        description="Hub repository or directory in transformers' format.",
    )
    template: str = Field(
        default="a photo of a {}", pattern=r"^[^{}]*\{\}[^{}]*$", description="Text of a query; {} is the class."
    )
    score: Score = 0.1
    counting: Counting = 0.1
    overlap: Overlap = 0.5
