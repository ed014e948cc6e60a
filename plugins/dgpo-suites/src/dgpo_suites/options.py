"""Options of the suites. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dgpo_schemas.base import Options, ShortForm, StrictModel
from dgpo_schemas.places import PathText
from dgpo_schemas.sections.rewards import RewardBlock, ServiceSection, WorkerSection

__all__ = [
    "CategoryOptions", "DpgOptions", "DrawBenchOptions", "GenEval2Options", "JudgeBlock", "LongTextOptions",
    "PartiOptions",
]  # fmt: skip


class JudgeBlock(StrictModel):
    """The reward that answers the questions, and where it runs."""

    use: str = Field(default="judge", min_length=1, description="Name of the reward.")
    options: dict[str, Any] = Field(default_factory=dict, description="Its options, such as `urls` and `model`.")
    worker: WorkerSection | None = Field(default=None, description="Run it in separate worker processes.")
    service: ServiceSection | None = Field(default=None, description="Send requests to servers that run it.")

    def block(self, label: str, **defaults: Any) -> RewardBlock:
        """Return the reward's block of a run file; `defaults` are options that are used unless they are set."""
        return RewardBlock(
            use=self.use,
            name=label,
            options={**defaults, **self.options},
            **{key: value for key, value in (("worker", self.worker), ("service", self.service)) if value is not None},
        )


class GenEval2Options(Options):
    """The prompt file, and the judge."""

    file: PathText = Field(
        description="geneval2_data.jsonl of github.com/facebookresearch/GenEval2, whose license (CC BY-NC 4.0) "
        "excludes commercial use."
    )
    judge: JudgeBlock = Field(
        default=JudgeBlock(), description="The judge; `form: soft-tifa` is set unless another reward is named."
    )


class DpgOptions(Options):
    """The table of questions, and the judge."""

    file: PathText = Field(description="dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA.")
    judge: JudgeBlock = Field(
        default=JudgeBlock(), description="The judge; `form: soft-tifa` is set unless another reward is named."
    )


Reward = Annotated[RewardBlock, ShortForm("use", "Name of a reward.")]


class CategoryOptions(Options):
    """The prompt file, and the rewards."""

    rewards: list[Reward] = Field(
        default=[RewardBlock(use="pickscore")], min_length=1, description="Rewards to score with, as in a run file."
    )


class DrawBenchOptions(CategoryOptions):
    """The prompt file, and the rewards."""

    file: PathText = Field(
        description="The sheet of Imagen's authors as .csv with the columns Prompts and Category, or a .txt or .jsonl "
        "file of its prompts, in which repeated prompts are read once."
    )


class PartiOptions(CategoryOptions):
    """The prompt file, and the rewards."""

    file: PathText = Field(description="PartiPrompts.tsv of github.com/google-research/parti.")


class LongTextOptions(Options):
    """The prompt file, and what reads the samples."""

    file: PathText = Field(
        description="textbench/text_prompts.jsonl, or text_prompts_zh.jsonl, of github.com/X-Omni-Team/X-Omni."
    )
    language: Literal["en", "zh"] = Field(
        default="en", description="What is counted: words (en), or characters (zh), as in the published script."
    )
    reader: JudgeBlock = Field(
        default=JudgeBlock(use="ocr"),
        description="The reward that reads the samples; its diagnostics have `text`. `judge` gets `form: reading`.",
    )
