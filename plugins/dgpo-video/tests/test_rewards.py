"""The video rewards: contract checks, and values against their definitions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins import registry
from dgpo_core.types import Example, Prompt, Scores
from dgpo_kit.contracts import reward_checks, run_all
from dgpo_schemas.base import Options
from dgpo_video import plugin
from dgpo_video.frames import Frames, chosen_frames
from dgpo_video.motion import Motion, motion
from dgpo_video.options import FramesOptions, MotionOptions

CPU = torch.device("cpu")
PROMPT = Prompt("anything")


# -- frames ---------------------------------------------------------------------------------------------------------


class Brightness(RewardModel):
    """An image reward: mean of the pixels; black is missing."""

    media = frozenset({"image"})
    range = (0.0, 1.0)
    group_by = "tag"
    concurrency = 2

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert media.dim() == 4
        assert len(media) == len(prompts)
        values = media.flatten(1).mean(1)
        missing = (values == 0) | ~values.isfinite()
        diagnostics = tuple(
            {"reason": "black"} if is_missing else {"marks": [{"text": p.text, "box": [0, 0, 1, 1]}], "clauses": []}
            for is_missing, p in zip(missing.tolist(), prompts, strict=True)
        )
        return Scores(values.nan_to_num(0, 0, 0), missing, diagnostics)

    def examples(self) -> Sequence[Example]:
        tagged = Prompt("light", {"tag": "a"})
        return [
            Example("white", tagged, torch.ones(3, 8, 8), good=True),
            Example("gray", tagged, torch.full((3, 8, 8), 0.2), good=False),
            Example("a video", tagged, torch.ones(2, 3, 8, 8), good=True),
        ]


class OnlyVideo(Brightness):
    media = frozenset({"video"})


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`build(**options)` returns a `frames` reward; `brightness` and `only-video` are registered for it."""
    from dgpo_core.hookspecs import Component, hookimpl

    class Plugin:
        @hookimpl
        def dgpo_rewards(self) -> Sequence[Component]:
            return [
                Component(name, "For tests", f"{__name__}:{kind}", Options)
                for name, kind in (("brightness", "Brightness"), ("only-video", "OnlyVideo"))
            ]

    installed = registry.Registry(discover=False)
    installed.register(Plugin(), distribution="tests")
    monkeypatch.setattr("dgpo_video.frames.get_registry", lambda: installed)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or SimpleNamespace(**globals()))

    def make(**options: Any) -> Frames:
        return Frames(FramesOptions(**{"reward": "brightness"} | options), device=CPU)

    return make


def ramp(*values: float) -> Tensor:
    """Return one video of uniform gray frames, [1, F, 3, 4, 4]."""
    return torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, len(values), 3, 4, 4)


@pytest.mark.parametrize(
    "which, count, frames",
    [
        ("first", 5, [0]), ("middle", 5, [2]), ("middle", 4, [1]), ("last", 5, [4]), ("all", 3, [0, 1, 2]),
        (4, 9, [0, 4, 8]), (4, 3, [0]), (1, 2, [0, 1]), ("middle", 1, [0]),
    ],
)  # fmt: skip
def test_chosen_frames(which: str | int, count: int, frames: list[int]) -> None:
    assert chosen_frames(which, count) == frames


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"frames": "first"}, 0.1), ({"frames": "middle"}, 0.6), ({"frames": "last"}, 0.2), ({"frames": "all"}, 0.4),
        ({"frames": "all", "aggregate": "min"}, 0.1), ({"frames": 2}, 0.3), ({"frames": 2, "aggregate": "min"}, 0.1),
        ({}, 0.15),
    ],
)  # fmt: skip
def test_value_of_a_video(build: Any, options: dict[str, Any], expected: float) -> None:
    scores = build(**options).score(ramp(0.1, 0.5, 0.6, 0.6, 0.2), [PROMPT])
    assert scores.values.tolist() == pytest.approx([expected])
    assert not scores.missing.any()


def test_missing_frame_makes_the_video_missing(build: Any) -> None:
    videos = torch.cat([ramp(0.5, 0.0), ramp(0.5, 0.7)])
    scores = build(frames="all").score(videos, [Prompt("a"), Prompt("b")])
    assert scores.missing.tolist() == [True, False]
    first, second = scores.diagnostics
    assert first["reason"] == "black"
    assert [frame["value"] for frame in first["frames"]] == [0.5, None]
    assert [(mark["text"], mark["frame"]) for mark in second["marks"]] == [("b", 0), ("b", 1)]


def test_frames_inherits_attributes_of_its_reward(build: Any) -> None:
    reward = build()
    assert (reward.range, reward.group_by, reward.concurrency) == ((0.0, 1.0), "tag", 2)
    assert [one.media.shape for one in reward.examples()] == [(3, 3, 8, 8)] * 2


@pytest.mark.parametrize("options", [{}, {"frames": "all", "aggregate": "min"}, {"frames": "last"}])
def test_frames_keeps_the_contract(build: Any, options: dict[str, Any]) -> None:
    run_all(reward_checks(lambda: build(**options)))


def test_reward_without_image_support_is_refused(build: Any) -> None:
    with pytest.raises(UserError, match="the reward only-video does not accept images"):
        build(reward="only-video")


@pytest.mark.parametrize("wrong", [{}, {"reward": "a", "frames": 0}, {"reward": "a", "frames": "some"}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FramesOptions.model_validate(wrong)


# -- motion ---------------------------------------------------------------------------------------------------------


def stripes(speed: float, contrast: float = 0.5, frames: int = 5) -> Tensor:
    """Return vertical sine stripes of period 16 pixels that move horizontally, [1, F, 3, 16, 64]."""
    x = torch.arange(64) - speed * torch.arange(frames)[:, None]
    wave = 0.5 + contrast / 2 * torch.sin(2 * torch.pi * x / 16)
    return wave.view(1, frames, 1, 1, 64).expand(1, frames, 3, 16, 64)


@pytest.mark.parametrize("speed", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("contrast", [0.5, 1.0])
def test_motion_is_speed(speed: float, contrast: float) -> None:
    """Up to the contribution of the gray-level term and of the image border."""
    assert float(motion(stripes(speed, contrast))) == pytest.approx(speed, rel=0.1)


def test_motion_matches_its_definition() -> None:
    """Compares with a pixel-by-pixel computation in float64."""
    video = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    luma = 0.299 * video[:, 0] + 0.587 * video[:, 1] + 0.114 * video[:, 2]

    def edges(frame: Tensor) -> float:
        total = 0.0
        for y in range(4):
            for x in range(5):
                right = float(frame[y, x + 1] - frame[y, x]) if x < 4 else 0.0
                down = float(frame[y + 1, x] - frame[y, x]) if y < 3 else 0.0
                total += (right**2 + down**2) ** 0.5
        return total

    steps = [
        float((luma[f + 1] - luma[f]).abs().sum()) / ((edges(luma[f]) + edges(luma[f + 1])) / 2 + 20 / 255)
        for f in range(2)
    ]
    assert float(motion(video[None])) == pytest.approx(sum(steps) / 2, rel=1e-5)


def test_motion_bounds() -> None:
    blink = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])[None]
    assert float(motion(blink)) == pytest.approx(255)
    assert float(motion(torch.full((1, 4, 3, 8, 8), 0.3))) == 0


def test_enough() -> None:
    reward = Motion(MotionOptions(enough=0.5), device=CPU)
    scores = reward.score(torch.cat([stripes(0.25), stripes(1.0)]), [PROMPT] * 2)
    assert reward.range == (0.0, 1.0)
    assert scores.values.tolist() == pytest.approx([0.5, 1.0], rel=0.08)
    assert scores.diagnostics[1]["motion"] == pytest.approx(1.0, rel=0.08)


def test_single_frame_is_missing() -> None:
    scores = Motion(MotionOptions(), device=CPU).score(torch.rand(2, 1, 3, 8, 8), [PROMPT] * 2)
    assert scores.missing.all()


@pytest.mark.parametrize("options", [{}, {"enough": 1.0}])
def test_motion_keeps_the_contract(options: dict[str, Any]) -> None:
    run_all(reward_checks(lambda: Motion(MotionOptions(**options), device=CPU)))


def test_declared_rewards() -> None:
    assert [part.name for part in plugin.dgpo_rewards()] == ["frames", "motion"]
