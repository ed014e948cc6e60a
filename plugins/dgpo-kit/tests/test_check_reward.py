"""`check_reward` passes sound components and reports each violated requirement."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt, Scores
from dgpo_kit.contracts import check_reward
from dgpo_kit.toy import BrightnessOptions, BrightnessReward

Check = Callable[[], None]
Found = Callable[[str, Check], None]
CPU = torch.device("cpu")


MEDIA = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(f"image {i}", {"tag": "even" if i % 2 == 0 else "odd"}) for i in range(4)]


@pytest.mark.parametrize("fail", ["never", "dark"])
def test_the_toy_reward_passes(fail: str) -> None:
    check_reward(BrightnessReward(BrightnessOptions(fail=fail), device=CPU), MEDIA, PROMPTS)


def rewards() -> list[tuple[str, Check]]:
    class Shaped(RewardModel):
        """Brightness, made wrong by `change`."""

        range = (0.0, 1.0)

        def change(self, scores: Scores, media: Tensor) -> Scores:
            return scores

        def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            values = media.mean((1, 2, 3))
            return self.change(Scores(values, torch.zeros(len(values), dtype=torch.bool)), media)

    def shaped(function: Callable[[Scores, Tensor], Scores], **attributes: Any) -> RewardModel:
        kind = type("Made", (Shaped,), {"change": lambda self, scores, media: function(scores, media)} | attributes)
        made: RewardModel = kind(None, device=CPU)
        return made

    def of_values(function: Callable[[Tensor], Tensor], **attributes: Any) -> RewardModel:
        return shaped(lambda s, media: Scores(function(s.values), s.missing), **attributes)

    def darken(scores: Scores, media: Tensor) -> Scores:
        media *= 0.9
        return scores

    def by_thread(values: Tensor) -> Tensor:
        return values * (threading.current_thread() is threading.main_thread())

    def numpys(values: Tensor) -> Tensor:
        return values * (0.5 + 0 * np.random.rand())

    def pythons(values: Tensor) -> Tensor:
        return values * (0.5 + 0 * random.random())

    def does(deed: Callable[[], Any]) -> RewardModel:
        return of_values(lambda v: v + 0 * bool(deed()))

    expected = [
        (does(lambda: os.chdir("/")), "must not change the working directory"),
        (does(lambda: torch.set_default_device("meta")), "must not change torch's default device"),
        (does(lambda: torch.set_num_threads(torch.get_num_threads() + 1)), "must not change torch's threads"),
        (does(lambda: torch.use_deterministic_algorithms(True)), "must not change torch's deterministic algorithms"),
        (of_values(lambda v: v[:, None]), r"`values` must have shape \[B\] \[4\], got \[4, 1\]"),
        (of_values(lambda v: v.double()), r"`values` must be float32, got torch\.float64"),
        (of_values(lambda v: v + 1), r"values must lie in the declared range \(0\.0, 1\.0\)"),
        (of_values(lambda v: v.where(v < 0.5, torch.nan)), "nonfinite values must be marked missing"),
        (of_values(lambda v: v / v.sum()), "a score must not depend on the other samples"),
        (of_values(by_thread), "must be the same in every thread"),
        (of_values(numpys), "must not change the global random state of numpy"),
        (of_values(pythons), "must not change the global random state of random"),
        (of_values(lambda v: v, range=(1.0, 1.0)), r"`range` must be \(lowest, highest value\)"),
        (of_values(lambda v: v, media=frozenset({"sound"})), "`media` must contain image, video or both"),
        (of_values(lambda v: v, group_by="task"), "prompts must have the key task"),
        (shaped(lambda s, media: Scores(s.values, s.missing[:2])), r"`missing` must have shape \[B\] \[4\], got \[2\]"),
        (shaped(lambda s, media: Scores(s.values, s.missing.float())), r"`missing` must be bool, got torch\.float32"),
        (shaped(lambda s, media: Scores(s.values, s.missing, ({},))), "4 diagnostics or none, got 1"),
        (
            shaped(lambda s, media: Scores(s.values, s.missing, ({"x": object()},) * len(media))),
            "not JSON serializable",
        ),
        (shaped(darken), "media must not be modified"),
    ]

    def run(reward: RewardModel) -> Check:
        return lambda: check_reward(reward, MEDIA.clone(), PROMPTS)

    return [(requirement, run(reward)) for reward, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), rewards())
def test_rewards(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)
