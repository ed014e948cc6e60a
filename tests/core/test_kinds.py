"""Whether a reward scores what a backbone makes, and what is said if not. The commands that ask are tested in
tests/integration/test_bad_input.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.kinds import check_reward
from dgpo_core.registry import Registry
from dgpo_schemas.run import BackboneSection, RewardBlock

Media = set[str]
SERVICE = {"urls": ["http://gpu-7:8500"]}


def check(registry: Registry, media: Media, backbone: str, **block: Any) -> None:
    reward: Any = SimpleNamespace(media=frozenset(media))
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


ADAPTER = "show it single frames: {use: frames, options: {reward: {use: judge, ...}}}"
IMAGES = "judge scores images, but the backbone wan makes videos"
VIDEOS = "judge scores videos, but the backbone sd3 makes images"


@pytest.mark.parametrize(
    ("media", "backbone", "block", "says"),
    [
        ({"video"}, "sd3", {}, f"{VIDEOS}; choose a reward that scores images"),
        ({"image"}, "wan", {}, f"{IMAGES}; {ADAPTER}"),
        ({"image"}, "wan", {"service": SERVICE}, f"{IMAGES}; {ADAPTER}, in its service's file too"),
    ],
)
def test_what_does_not(registry: Registry, media: Media, backbone: str, block: dict[str, Any], says: str) -> None:
    """The key in the file, what each is, and the way out."""
    with pytest.raises(UserError) as caught:
        check(registry, media, backbone, **block)
    assert str(caught.value) == f"rewards.0.use: {says}"
