"""A suite of the toy model: numbered prompts of three tasks, judged by the brightness of scale 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile, task_means
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.types import Prompt
from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.sections.rewards import RewardBlock

TASKS = ("one", "two", "three")


class ToySuiteOptions(Options):
    """Options of the toy suite."""

    count: Int = Field(default=6, ge=1, description="Number of prompts.")
    scale: Float = Field(default=1.0, gt=0, le=1, description="Scale of the reward.")
    fail: str | None = Field(default=None, description="How the reward fails.")
    published: str | None = Field(default=None, description="Digest of the published file.")


class ToySuite(Suite):
    """Brightness of two samples of every prompt; the mean of three tasks."""

    samples_per_prompt = 2
    group_by = "task"
    options: ToySuiteOptions

    def prompts(self) -> list[Prompt]:
        return [Prompt(f"toy picture {i}", {"task": TASKS[i % 3]}) for i in range(self.options.count)]

    def rewards(self) -> list[RewardBlock]:
        options = {"scale": self.options.scale} | ({"fail": self.options.fail} if self.options.fail else {})
        return [RewardBlock(use="brightness", name="light", options=options)]

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        return {"light": scores["light"]}

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        tasks = task_means(values["light"], [str(prompt.metadata["task"]) for prompt in prompts])
        return {"overall": sum(tasks.values()) / len(tasks), **tasks}

    def files(self) -> list[SuiteFile]:
        return [SuiteFile("toy.txt", "0" * 64, self.options.published)] if self.options.published else []

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        judge = judges["light"]
        return [] if judge["options"]["scale"] == 1.0 else [f"the scale of {judge['use']} is not 1"]


class SuitePlugin:
    """To be registered: the suite `toy-suite`."""

    @hookimpl
    def dgpo_suites(self) -> list[Component]:
        return [Component("toy-suite", "Three tasks", f"{__name__}:ToySuite", ToySuiteOptions)]
