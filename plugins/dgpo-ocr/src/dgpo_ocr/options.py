"""Options of the OCR reward and of its prompts. Does not import torch or numpy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.places import PathText

__all__ = ["OcrOptions", "OcrPromptsOptions", "OcrSuiteOptions"]


class OcrOptions(Options):
    """The engine, its settings, and how texts are scored."""

    engine: Literal["rapidocr", "paddleocr"] = Field(
        default="rapidocr",
        description="OCR engine. `rapidocr` works offline. `paddleocr`, the published reference, must be installed "
        "separately, preferably in an environment that the reward's `worker: {python: ...}` names.",
    )
    rule: Literal["normalized", "flowgrpo"] = Field(
        default="normalized",
        description="How the recognized text is compared with the quoted text. `normalized`: after Unicode "
        "normalization, in reading order. `flowgrpo`: exactly as the code of Flow-GRPO and DGPO, as in the published "
        "numbers; it also sets `video: flowgrpo`, `min_score: 0` and `min_side: 1` unless they are set.",
    )
    strict: bool = Field(
        default=False,
        description="Penalize surplus text: use the edit distance even if the recognized text contains the target.",
    )
    video: Literal["mean", "flowgrpo"] = Field(
        default="mean",
        description="Score of a video. `mean`: the mean over its sampled frames. `flowgrpo`: as in Flow-GRPO, surplus "
        "text is penalized, and the mean is over frames with a positive score, so that one good frame is enough.",
    )
    every: Int = Field(default=4, ge=1, le=10**6, description="Read every so-many-th frame of a video, from the first.")
    min_score: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Ignore lines with a lower confidence. PaddleOCR 2, the published engine, itself ignores lines "
        "below 0.5; `rule: flowgrpo` always ignores lines with a confidence of 0.",
    )
    detection: bool = Field(
        default=True,
        description="Detect lines of text first; false reads the whole image as one line (rapidocr only).",
    )
    detection_side: Int = Field(
        default=960,
        ge=32,
        le=16384,
        description="Larger images are downscaled to this longer side for detection; recognition uses the full size.",
    )
    min_side: Int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Images with a smaller shorter side are enlarged by an integer factor to at least this many.",
    )
    recognition_width: Int = Field(
        default=320,
        ge=48,
        le=2048,
        description="Minimum width to which a line (48 pixels high) is padded for recognition. 96 is three times as "
        "fast for texts of a few letters (rapidocr only).",
    )
    readers: Int = Field(default=2, ge=1, le=64, description="Images read in parallel, each by a separate engine.")
    threads: Int = Field(default=1, ge=1, le=1024, description="Threads per engine.")
    detection_model: PathText | None = Field(
        default=None,
        min_length=1,
        description="Detection model to use instead of the engine's own: an .onnx file (rapidocr) or a directory "
        "(paddleocr).",
    )
    recognition_model: PathText | None = Field(
        default=None, min_length=1, description="Recognition model to use instead of the engine's own, likewise."
    )

    @model_validator(mode="before")
    @classmethod
    def _published(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("rule") == "flowgrpo":
            return {"video": "flowgrpo", "min_score": 0.0, "min_side": 1, **data}
        return data

    @model_validator(mode="after")
    def _possible(self) -> OcrOptions:
        if self.rule == "flowgrpo" and self.strict:
            raise ValueError("`strict: true` requires `rule: normalized`; `flowgrpo` does not penalize surplus text")
        if self.engine == "paddleocr":
            if not self.detection:
                raise ValueError("`detection: false` requires `engine: rapidocr`; paddleocr always detects lines")
            if self.recognition_width != type(self).model_fields["recognition_width"].default:
                raise ValueError("`recognition_width` requires `engine: rapidocr`; paddleocr chooses its own")
            if (self.detection_model is None) != (self.recognition_model is None):
                raise ValueError("paddleocr requires both `detection_model` and `recognition_model`, or neither")
        return self


class OcrSuiteOptions(Options):
    """The prompt file, and how its texts are read and scored."""

    file: PathText = Field(
        description="dataset/ocr/test.txt of github.com/yifan123/flow_grpo, or another file of prompts with a quoted "
        "text."
    )
    engine: Literal["rapidocr", "paddleocr"] = Field(
        default="rapidocr", description="OCR engine; `paddleocr` is the published one."
    )
    rule: Literal["normalized", "flowgrpo"] = Field(
        default="flowgrpo", description="How the recognized text is compared; `flowgrpo` is the published rule."
    )
    min_score: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Ignore lines with a lower confidence. The published engine itself ignores lines below 0.5.",
    )


class OcrPromptsOptions(Options):
    """The number of prompts per split, and their words."""

    train_count: Int = Field(default=2000, ge=1, le=10**7, description="Number of training prompts.")
    heldout_count: Int = Field(default=400, ge=1, le=10**7, description="Number of held-out prompts.")
    seed: Int = Field(default=0, description="Seed of the words, order and sentences; does not affect the split.")
    words: list[str] | PathText | None = Field(
        default=None,
        description="Words and short phrases to write: a list, or a UTF-8 file with one per line. The default is the "
        "plugin's list of common English words and signs.",
    )
    words_per_text: Int = Field(
        default=2, ge=1, le=8, description="Maximum number of list entries per text; each text has at least one."
    )
