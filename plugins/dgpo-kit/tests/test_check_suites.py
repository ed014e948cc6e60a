"""`check_suite` passes a sound suite and finds each broken requirement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import Suite, task_means
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_suite
from dgpo_schemas.sections.rewards import RewardBlock

COUNTER = count()


class Sound(Suite):
    samples_per_prompt = 2
    group_by = "task"

    def __init__(self) -> None:
        super().__init__(None)

    def prompts(self) -> list[Prompt]:
        return [Prompt(f"p{i}", {"task": "ab"[i % 2]}) for i in range(6)]

    def rewards(self) -> list[RewardBlock]:
        return [RewardBlock(use="r")]

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        tasks = task_means(values["r"], [str(prompt.metadata["task"]) for prompt in prompts])
        return {"overall": sum(tasks.values()) / 2, **tasks}


def changed(**attributes: Any) -> type[Sound]:
    return type("Changed", (Sound,), attributes)


def test_a_sound_suite_passes() -> None:
    check_suite(Sound)


@pytest.mark.parametrize(
    ("attributes", "requirement"),
    [
        ({"prompts": lambda self: []}, "there must be at least one prompt"),
        ({"prompts": lambda self: [Prompt(" ", {"task": "a"})]}, "every prompt must have a text"),
        ({"prompts": lambda self: [Prompt(f"p{next(COUNTER)}", {"task": "a"})]}, "must return the same prompts"),
        ({"rewards": lambda self: [{"use": "r"}]}, "rewards must be RewardBlocks"),
        ({"rewards": lambda self: [RewardBlock(use="r")] * 2}, "the labels of the rewards must be distinct"),
        ({"samples_per_prompt": 0}, "samples_per_prompt must be an integer of at least 1"),
        ({"group_by": "kind"}, "group_by is 'kind', which is no metadata key of"),
        ({"aggregate": lambda self, v, p: {"overall": float("nan")}}, "no score of complete samples is a number"),
        ({"aggregate": lambda self, v, p: {f"s{int(v['r'].isnan().any())}": 1.0}}, "must not change the names"),
        ({"aggregate": lambda self, v, p: {"s": float(v["r"][0].nansum() + 10 * v["r"][1].nansum())}}, "order of the"),
        ({"aggregate": lambda self, v, p: {"s": float(v["r"][:, 0].nanmean())}}, "another order of the samples"),
        ({"aggregate": lambda self, v, p: {"s": float(torch.rand(()))}}, "must be the same|global random state"),
    ],
)
def test_each_requirement(attributes: dict[str, Any], requirement: str) -> None:
    with pytest.raises(AssertionError, match=requirement):
        check_suite(changed(**attributes))
