"""`check_detector` passes a sound detector and reports each violated requirement; detectors are a regular kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_geneval import plugin
from dgpo_geneval.contract import check_detector
from dgpo_geneval.detector import Detection, Detector
from dgpo_kit.contracts import component_checks, run_all
from dgpo_schemas.base import Options

Check = Callable[[], None]
CPU = torch.device("cpu")
MEDIA = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def seen(*box: float, score: float = 1.0) -> Detection:
    x0, y0, x1, y1 = box
    return Detection("spot", score, (x0, y0, x1, y1))


class Spots(Detector):
    """Sees one spot an image, as large as the image is bright."""

    labels = ("spot",)

    def detect(self, images: Tensor) -> list[list[Detection]]:
        height, width = images.shape[2:]
        return [[seen(0.0, 0.0, width * float(image.mean()), float(height))] for image in images]


def test_a_sound_detector_passes() -> None:
    check_detector(Spots(None, device=CPU), MEDIA)


def detectors() -> list[tuple[str, Check]]:
    class Undeclared(Spots):
        labels = ("circle",)

    class Outside(Spots):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return [[seen(0.0, 0.0, 9.0, 8.0)] for _ in images]

    class Uncertain(Spots):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return [[seen(0.0, 0.0, 1.0, 1.0, score=float("nan"))] for _ in images]

    class Few(Spots):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return super().detect(images)[:1]

    class Relative(Spots):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return super().detect(images / images.max())

    expected: list[tuple[type[Spots], str]] = [
        (Undeclared, "label 'spot' must be one of `labels`"),
        (Outside, r"box .* must lie in the image"),
        (Uncertain, "scores must be finite"),
        (Few, "one list per image: 4, got 1"),
        (Relative, "must not depend on the other images"),
    ]

    def run(kind: type[Spots]) -> Check:
        return lambda: check_detector(kind(None, device=CPU), MEDIA)

    return [(requirement, run(kind)) for kind, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), detectors())
def test_detectors(requirement: str, check: Check) -> None:
    with pytest.raises(AssertionError) as caught:
        check()
    assert re.search(requirement, str(caught.value), re.DOTALL), str(caught.value)


class SpotsOptions(Options):
    """None."""


class Mute(Detector):
    """Lacks its method."""


class ThirdParty:
    """A distribution that knows detectors by their hook alone."""

    @hookimpl
    def dgpo_detectors(self) -> Sequence[Component]:
        here = f"{__name__}:"
        return [
            Component("spots", "Sees spots", here + "Spots", SpotsOptions),
            Component("mute", "Sees nothing", here + "Mute"),
            Component("wild", "No detector", here + "SpotsOptions"),
        ]


@pytest.fixture
def registry() -> Registry:
    """Detectors of others beside those of the distribution."""
    made = Registry(discover=False)
    made.register(plugin, distribution="dgpo-geneval")
    made.register(ThirdParty(), distribution="dgpo-spots", version="3")
    return made


def test_others_bring_detectors(registry: Registry) -> None:
    assert list(registry.components("detector")) == [
        *("detr", "grounding-dino", "mask2former", "mute", "owlv2", "spots", "wild", "yolox")
    ]
    assert isinstance(registry.create("detector", "spots", device=CPU), Spots)
    run_all(component_checks(registry, "detector", "spots"))


@pytest.mark.parametrize(
    ("name", "why"), [("mute", "does not implement detect"), ("wild", "is not a subclass of Detector")]
)
def test_they_are_held_to_the_contract(registry: Registry, name: str, why: str) -> None:
    with pytest.raises(PluginError, match=f"detector {name} of dgpo-spots 3: .*{why}"):
        registry.create("detector", name, device=CPU)


def test_without_the_distribution_the_sentence_says_what_to_install() -> None:
    bare: Any = Registry(discover=False)
    with pytest.raises(PluginError) as caught:
        bare.register(ThirdParty(), distribution="dgpo-spots")
    assert str(caught.value) == (
        "dgpo_detectors declares components of a kind that another plugin defines; it comes with dgpo-geneval; "
        "in a checkout of dgpo: pip install -e plugins/dgpo-geneval"
    )
