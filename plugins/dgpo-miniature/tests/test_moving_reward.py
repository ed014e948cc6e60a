"""The reward `miniature-motion`: contract checks, and values against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_reward, reward_checks, run_all
from dgpo_miniature.moving.motion import MiniatureMotion
from dgpo_miniature.options import MiniatureMotionOptions

CPU = torch.device("cpu")


@pytest.mark.parametrize("strict", [True, False])
def test_miniature_motion_keeps_the_contract(strict: bool) -> None:
    run_all(reward_checks(lambda: MiniatureMotion(MiniatureMotionOptions(strict=strict), device=CPU)))
    known = MiniatureMotion(MiniatureMotionOptions(strict=strict), device=CPU).examples()
    check_reward(
        MiniatureMotion(MiniatureMotionOptions(strict=strict), device=CPU),
        torch.stack([one.media for one in known]),
        [one.prompt for one in known],
    )


def test_miniature_motion_values() -> None:
    strict, lenient = (MiniatureMotion(MiniatureMotionOptions(strict=s), device=CPU) for s in (True, False))
    for one in strict.examples():
        media = one.media[None]
        assert float(strict.score(media, [one.prompt]).values) == float(one.good)
        scores = lenient.score(media, [one.prompt])
        assert float(scores.values) == pytest.approx(1.0 if one.good else 2 / 3)
        (said,) = scores.diagnostics
        assert [clause["ok"] for clause in said["clauses"]].count(False) == (0 if one.good else 1)
        assert len(said["marks"]) == 5
    empty = lenient.score(torch.full((1, 5, 3, 32, 32), 0.9), [one.prompt])
    assert float(empty.values) == 0
    assert empty.diagnostics[0]["note"].startswith("no shape in 5 frames")


@pytest.mark.parametrize("metadata", [{}, {"shape": "star", "color": "red", "direction": "left"}])
def test_prompts_of_another_world(metadata: dict[str, Any]) -> None:
    reward = MiniatureMotion(MiniatureMotionOptions(), device=CPU)
    with pytest.raises(UserError, match=r"prompts.txt:3: miniature-motion: .* `shape`, one of circle, square"):
        reward.check_prompts([Prompt("a star", metadata, origin="prompts.txt:3")])
