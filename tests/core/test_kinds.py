"""Whether a reward scores what a backbone makes, and what is said if not. The commands that ask are tested in
tests/integration/bad_input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dgpo_core.errors import PluginError, UserError
from dgpo_core.media.kinds import check_range, check_reward
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_schemas.sections.rewards import RewardBlock

Media = set[str]
SERVICE = {"urls": ["http://gpu-7:8500"]}


def check(registry: Registry, media: Media, backbone: str, **block: Any) -> None:
    reward: Any = SimpleNamespace(media=frozenset(media), range=(0.0, 1.0), concurrency=1, group_by=None)
    made = RewardBlock.model_validate({"use": "judge"} | block)
    section = BackboneSection.model_validate({"use": backbone, "checkpoint": "missing"})  # its weights are not loaded
    check_reward(reward, made, "rewards.0", section, registry)


@pytest.mark.parametrize(
    ("media", "backbone"),
    [
        ({"image"}, "toy"),
        ({"image", "video"}, "toy"),
        ({"video"}, "film"),
        ({"image", "video"}, "film"),
        ({"video"}, "wan"),
        ({"image"}, "sd3"),
    ],
)
def test_what_goes_together(registry: Registry, film: object, media: Media, backbone: str) -> None:
    registry.register(film, distribution="film")
    check(registry, media, backbone)


ADAPTER = "score single frames with {use: frames, options: {reward: {use: judge, ...}}}"
IMAGES = "judge scores images, but the backbone wan generates videos"
VIDEOS = "judge scores videos, but the backbone sd3 generates images"


@pytest.mark.parametrize(
    ("media", "backbone", "block", "says"),
    [
        ({"video"}, "sd3", {}, f"{VIDEOS}; choose a reward that scores images"),
        ({"image"}, "wan", {}, f"{IMAGES}; {ADAPTER}"),
        ({"image"}, "wan", {"service": SERVICE}, f"{IMAGES}; {ADAPTER}, also in the file of its service"),
    ],
)
def test_what_does_not(registry: Registry, media: Media, backbone: str, block: dict[str, Any], says: str) -> None:
    """The key in the file, what each is, and the way out."""
    with pytest.raises(UserError) as caught:
        check(registry, media, backbone, **block)
    assert str(caught.value) == f"rewards.0.use: {says}"


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"media": None}, "media = None; it must be a set of 'image' and 'video'"),
        ({"media": frozenset()}, "media = frozenset(); it must be a set"),
        ({"media": [["image"]]}, "media = [['image']]; it must be a set"),
        ({"media": {"audio"}}, "media = {'audio'}; it must be a set"),
        ({"concurrency": "2"}, "concurrency = '2'; it must be an integer"),
        ({"group_by": 3}, "group_by = 3; it must be a metadata key or None"),
    ],
)
def test_declarations_of_another_type(registry: Registry, declared: dict[str, Any], says: str) -> None:
    sound = {"media": {"image"}, "range": (0, float("inf")), "concurrency": 1, "group_by": "tag"}
    block = RewardBlock.model_validate({"use": "judge"})
    section = BackboneSection.model_validate({"use": "toy", "checkpoint": "missing"})
    check_reward(SimpleNamespace(**sound), block, "rewards.0", section, registry)  # type: ignore[arg-type]
    with pytest.raises(PluginError) as caught:
        check_reward(SimpleNamespace(**sound | declared), block, "rewards.0", section, registry)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"rewards.0.use: the reward judge declares {says}")


@pytest.mark.parametrize("declared", [(0.0, 1.0), (-1, 1), (0.0, float("inf")), [float("-inf"), 3.0]])
def test_ranges(declared: Any) -> None:
    check_range(SimpleNamespace(range=declared), "judge", "rewards.0")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "declared",
    [(1.0, 0.0), (1.0, 1.0), (0.0, float("nan")), (float("nan"), 1.0), (0.0,), "ab", None, (0, 1, 2), 5, ({}, 1)],
)
def test_ranges_that_no_value_lies_in(declared: Any) -> None:
    with pytest.raises(PluginError, match=r"^rewards\.0\.use: the reward judge declares the range "):
        check_range(SimpleNamespace(range=declared), "judge", "rewards.0")  # type: ignore[arg-type]
