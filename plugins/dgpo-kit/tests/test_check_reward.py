"""`check_reward` passes sound components and finds each broken promise."""

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
        (does(lambda: os.chdir("/")), "leaves the working directory alone"),
        (does(lambda: torch.set_default_device("meta")), "leaves torch's default device alone"),
        (does(lambda: torch.set_num_threads(torch.get_num_threads() + 1)), "leaves torch's threads alone"),
        (does(lambda: torch.use_deterministic_algorithms(True)), "leaves torch's deterministic algorithms alone"),
        (of_values(lambda v: v[:, None]), r"one value a sample: \[4\], not \[4, 1\]"),
        (of_values(lambda v: v.double()), r"values are float32, not torch\.float64"),
        (of_values(lambda v: v + 1), r"values lie in the declared range \(0\.0, 1\.0\)"),
        (of_values(lambda v: v.where(v < 0.5, torch.nan)), "a value that is no number is marked missing"),
        (of_values(lambda v: v / v.sum()), "a score does not depend on the others"),
        (of_values(by_thread), "a thread makes no difference"),
        (of_values(numpys), "leaves the global random state of numpy alone"),
        (of_values(pythons), "leaves the global random state of random alone"),
        (of_values(lambda v: v, range=(1.0, 1.0)), "from the smallest to the largest value"),
        (of_values(lambda v: v, media=frozenset({"sound"})), "whether it takes images or videos"),
        (of_values(lambda v: v, group_by="task"), "prompts have the key task it groups by"),
        (shaped(lambda s, media: Scores(s.values, s.missing[:2])), r"one missing mark a sample: \[4\], not \[2\]"),
        (shaped(lambda s, media: Scores(s.values, s.missing.float())), r"missing marks are bool, not torch\.float32"),
        (shaped(lambda s, media: Scores(s.values, s.missing, ({},))), "4 diagnostics or none, not 1"),
        (
            shaped(lambda s, media: Scores(s.values, s.missing, ({"x": object()},) * len(media))),
            "not JSON serializable",
        ),
        (shaped(darken), "media are left alone"),
    ]

    def run(reward: RewardModel) -> Check:
        return lambda: check_reward(reward, MEDIA.clone(), PROMPTS)

    return [(promise, run(reward)) for reward, promise in expected]


@pytest.mark.parametrize(("promise", "check"), rewards())
def test_rewards(assert_found: Found, promise: str, check: Check) -> None:
    assert_found(promise, check)
