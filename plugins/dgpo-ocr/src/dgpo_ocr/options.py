"""Options of the OCR reward and of its prompts. Light: no torch, no numpy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.places import PathText

__all__ = ["OcrOptions", "OcrPromptsOptions"]


class OcrOptions(Options):
    """Who reads, how, and what a reading is worth."""

    engine: Literal["rapidocr", "paddleocr"] = Field(
        default="rapidocr",
        description="Who reads. `rapidocr` works offline; `paddleocr`, the published reference, must be installed "
        "beside this plugin, best in an environment that the reward's `worker: {python: ...}` names.",
    )
    rule: Literal["normalized", "flowgrpo"] = Field(
        default="normalized",
        description="How what is read is compared with the quoted text. `normalized`: texts that look alike are alike, "
        "in the order in which people read. `flowgrpo`: exactly as Flow-GRPO's and DGPO's code, the published numbers' "
        "rule; it also sets `video: flowgrpo`, `min_score: 0` and `min_side: 1` where they are not given.",
    )
    strict: bool = Field(
        default=False,
        description="Charge surplus text: plain edit distance, even where the target is part of what is read.",
    )
    video: Literal["mean", "flowgrpo"] = Field(
        default="mean",
        description="A video's value: the mean over its sampled frames, or Flow-GRPO's: no free surplus text, mean "
        "over the frames with a positive score, so that one good frame is enough.",
    )
    every: Int = Field(default=4, ge=1, le=10**6, description="Read every so-many-th frame of a video, from the first.")
    min_score: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Leave out lines that the engine itself trusts less than this. PaddleOCR 2, the published reader, "
        "leaves out those below 0.5 by itself; `rule: flowgrpo` those of 0 in any case.",
    )
    detection: bool = Field(
        default=True,
        description="Look for lines of text first; false reads the whole image as one line (rapidocr only).",
    )
    detection_side: Int = Field(
        default=960,
        ge=32,
        le=16384,
        description="Longer images are shrunk to this longer side to look for lines; they are read at full size.",
    )
    min_side: Int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Images whose shorter side has fewer pixels are enlarged by a whole factor until it has as many.",
    )
    recognition_width: Int = Field(
        default=320,
        ge=48,
        le=2048,
        description="Least width to which a line (48 high) is padded when it is read; longer lines keep theirs. 96 is "
        "three times as fast for texts of a few letters (rapidocr only).",
    )
    readers: Int = Field(default=2, ge=1, le=64, description="Images read at once, each by an engine of its own.")
    threads: Int = Field(default=1, ge=1, le=1024, description="Threads of one reader.")
    detection_model: PathText | None = Field(
        default=None,
        min_length=1,
        description="Model that looks for lines in place of the engine's own: an .onnx file (rapidocr) or a directory "
        "(paddleocr).",
    )
    recognition_model: PathText | None = Field(
        default=None, min_length=1, description="Model that reads lines in place of the engine's own; likewise."
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
            raise ValueError("`strict: true` needs `rule: normalized`; `flowgrpo` lets surplus text go free")
        if self.engine == "paddleocr":
            if not self.detection:
                raise ValueError("`detection: false` needs `engine: rapidocr`; paddleocr always looks for lines")
            if self.recognition_width != type(self).model_fields["recognition_width"].default:
                raise ValueError("`recognition_width` needs `engine: rapidocr`; paddleocr chooses its own")
            if (self.detection_model is None) != (self.recognition_model is None):
                raise ValueError("paddleocr takes `detection_model` and `recognition_model` together, or neither")
        return self


class OcrPromptsOptions(Options):
    """How many prompts each split has, and of which words."""

    train_count: Int = Field(default=2000, ge=1, le=10**7, description="Training prompts.")
    heldout_count: Int = Field(default=400, ge=1, le=10**7, description="Held-out prompts.")
    seed: Int = Field(default=0, description="Chooses words, order and sentences; never which split a word is in.")
    words: list[str] | PathText | None = Field(
        default=None,
        description="Words and short phrases to write: a list, or a UTF-8 file with one a line. By default the "
        "plugin's own, common English words and signs.",
    )
    words_per_text: Int = Field(
        default=2, ge=1, le=8, description="Entries of the list in one text: each text has one to so many."
    )
