"""YOLOX-nano's published weights on photographs that scikit-image and matplotlib ship.

What a picture shows was written down by looking at it, before the detector ran. Seven photographs stand alone; eight
pictures are two or three of them put together, so that counts and positions are known. Two show nothing that is asked.
The threshold of counting, 0.5, was chosen on the single photographs, where the best false object has 0.39 and the worst
true one 0.62. What the smallest of the YOLOX networks does not see stays in the list, as a failure that is expected.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_geneval.detectors.options import YoloxOptions
from dgpo_geneval.detectors.yolox import YoloxDetector
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalOfficialReward, GenEvalReward
from dgpo_geneval.thresholds import Labeled, choose, exact_share
from dgpo_kit.contracts import check_reward

CPU = torch.device("cpu")
SIDE = 480
"""Height of photographs put side by side, width of those put above each other."""


def photograph(name: str) -> Image.Image:
    if name == "grace_hopper.jpg":
        path = Path(get_sample_data(name, asfileobj=False))
    else:
        spec = find_spec("skimage")
        assert spec is not None, "the photographs are scikit-image's, a test dependency"
        assert spec.origin is not None
        path = Path(spec.origin).parent / "data" / name
    with Image.open(path) as image:
        return image.convert("RGB")


def beside(*names: str) -> Image.Image:
    """From left to right; a leading `-` mirrors a photograph."""
    parts = []
    for name in names:
        part = photograph(name.removeprefix("-"))
        part = ImageOps.mirror(part) if name.startswith("-") else part
        parts.append(part.resize((round(part.width * SIDE / part.height), SIDE), Image.Resampling.BICUBIC))
    canvas = Image.new("RGB", (sum(part.width for part in parts), SIDE))
    left = 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width
    return canvas


def above(*names: str) -> Image.Image:
    """From top to bottom."""
    parts = [photograph(name) for name in names]
    parts = [p.resize((SIDE, round(p.height * SIDE / p.width)), Image.Resampling.BICUBIC) for p in parts]
    canvas = Image.new("RGB", (SIDE, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


Metadata = dict[str, Any]


def objects(**counts: int) -> Metadata:
    return {"tag": "two_object", "include": [{"class": label, "count": count} for label, count in counts.items()]}


def exactly(label: str, count: int) -> Metadata:
    return {
        "tag": "counting",
        "include": [{"class": label, "count": count}],
        "exclude": [{"class": label, "count": count + 1}],
    }


def relation(label: str, words: str, other: str) -> Metadata:
    return {
        "tag": "position",
        "include": [{"class": other, "count": 1}, {"class": label, "count": 1, "position": [words, 0]}],
    }


ASTRONAUT, CAMERA, HOPPER, CAT = "astronaut.png", "camera.png", "grace_hopper.jpg", "chelsea.png"
LEFT, RIGHT, COFFEE = "motorcycle_left.png", "motorcycle_right.png", "coffee.png"

SCENES: dict[str, tuple[Callable[[], Image.Image], Metadata, Metadata]] = {
    "an astronaut": (lambda: photograph(ASTRONAUT), exactly("person", 1), exactly("person", 2)),
    "a cameraman": (lambda: photograph(CAMERA), exactly("person", 1), objects(person=1, dog=1)),
    "an admiral with a tie": (lambda: photograph(HOPPER), objects(person=1, tie=1), objects(person=1, cat=1)),
    "a cat": (lambda: photograph(CAT), exactly("cat", 1), exactly("dog", 1)),
    "a motorcycle": (lambda: photograph(LEFT), exactly("motorcycle", 1), exactly("motorcycle", 2)),
    "the motorcycle by another lens": (lambda: photograph(RIGHT), exactly("motorcycle", 1), objects(car=1)),
    "a cup with a spoon": (lambda: photograph(COFFEE), objects(cup=1, spoon=1), exactly("cup", 2)),
    "a cat left of an astronaut": (
        lambda: beside(CAT, ASTRONAUT),
        relation("cat", "left of", "person"),
        relation("cat", "right of", "person"),
    ),
    "a motorcycle right of an admiral": (
        lambda: beside(HOPPER, LEFT),
        relation("motorcycle", "right of", "person"),
        relation("motorcycle", "left of", "person"),
    ),
    "a cup above a cat": (
        lambda: above(COFFEE, CAT),
        relation("cup", "above", "cat"),
        relation("cup", "below", "cat"),
    ),
    "a cameraman below a motorcycle": (
        lambda: above(RIGHT, CAMERA),
        relation("person", "below", "motorcycle"),
        relation("person", "above", "motorcycle"),
    ),
    "a cup right of a cat": (
        lambda: beside(CAT, COFFEE),
        relation("cup", "right of", "cat"),
        relation("cup", "left of", "cat"),
    ),
    "two cats": (lambda: beside(CAT, "-" + CAT), exactly("cat", 2), exactly("cat", 1)),
    "two cups": (lambda: beside(COFFEE, "-" + COFFEE), exactly("cup", 2), exactly("cup", 3)),
    "three persons": (lambda: beside(ASTRONAUT, CAMERA, HOPPER), exactly("person", 3), exactly("person", 4)),
}
"""What is in a picture: how it is made, what is true of it, what is not."""

MISSED = {
    "the motorcycle by another lens": "seen as two, 0.86 and 0.82, that hardly overlap",
    "a cup with a spoon": "the spoon has 0.03",
}
"""What the network is wrong about. The reference preprocessing gives the same scores."""
CASES = [
    pytest.param(name, marks=pytest.mark.xfail(reason=MISSED[name], strict=True) if name in MISSED else ())
    for name in SCENES
]


@pytest.fixture(scope="module")
def detector(test_data: Path) -> YoloxDetector:
    return YoloxDetector(YoloxOptions(file=str(test_data / "yolox_nano.onnx")), device=CPU)


@pytest.mark.parametrize("scene", CASES)
@pytest.mark.parametrize("kind", [GenEvalReward, GenEvalOfficialReward])
def test_what_a_picture_shows_is_scored(scene: str, kind: type[GenEvalReward], detector: YoloxDetector) -> None:
    make, right, wrong = SCENES[scene]
    reward = kind(GenEvalOptions(colors=None), device=CPU, detector=detector)
    prompts = [Prompt(scene, right), Prompt("another scene", wrong)]
    reward.check_prompts(prompts)
    scores = reward.score(pixels(make()).expand(2, -1, -1, -1), prompts)
    assert not scores.missing.any()
    good, bad = scores.values.tolist()
    assert good == 1.0, scores.diagnostics[0]
    assert bad < 1.0, scores.diagnostics[1]
    assert bad == 0.0 or kind is GenEvalReward


@pytest.mark.parametrize("name", ["rocket.jpg", "coins.png"])
def test_what_a_photograph_does_not_show_is_not_seen(name: str, detector: YoloxDetector) -> None:
    (found,) = detector.detect(pixels(photograph(name)))
    assert not {"person", "cat", "motorcycle", "cup", "tie", "dog"} & {one.label for one in found}


SINGLE = {
    ASTRONAUT: {"person": 1, "cat": 0},
    CAMERA: {"person": 1, "motorcycle": 0},
    HOPPER: {"person": 1, "tie": 1},
    CAT: {"cat": 1, "dog": 0, "person": 0},
    LEFT: {"motorcycle": 1, "person": 0, "cat": 0},
    RIGHT: {"motorcycle": 1, "person": 0, "cat": 0},
    COFFEE: {"cup": 1, "person": 0},
}


def test_the_threshold_of_counting_comes_from_the_single_photographs(test_data: Path) -> None:
    low = YoloxOptions(file=str(test_data / "yolox_nano.onnx"), score=0.05)
    seen = YoloxDetector(low, device=CPU)
    labeled = [Labeled(objects, seen.detect(pixels(photograph(name)))[0]) for name, objects in SINGLE.items()]
    found = choose(labeled, 0.05, 16, exact_share)
    assert found.threshold == pytest.approx(YoloxOptions(file="x").counting, abs=0.02)
    assert found.highest - found.lowest > 0.2
    assert found.agreement == 16 / 17, "all but the motorcycle that is seen twice"


def test_a_reward_with_it(detector: YoloxDetector) -> None:
    """The published weights tell the shipped examples apart, and keep the contract of rewards."""
    reward = GenEvalOfficialReward(GenEvalOptions(colors=None), device=CPU, detector=detector)
    images = torch.cat([pixels(photograph(name)) for name in (ASTRONAUT, CAMERA)])
    check_reward(reward, images, [Prompt("p", exactly("person", 1)), Prompt("p", exactly("cat", 1))])
    examples = reward.examples()
    scores = [reward.score(example.media[None], [example.prompt]).values.item() for example in examples]
    assert scores == [1.0, 0.0, 0.0]
