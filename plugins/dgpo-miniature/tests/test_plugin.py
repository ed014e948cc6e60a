"""The declarations match their classes, which pass their contract checks."""

from __future__ import annotations

import importlib

import torch

from dgpo_core.contracts import PromptSource
from dgpo_geneval.detector import Detector
from dgpo_miniature.options import ShapesOptions
from dgpo_miniature.plugin import dgpo_detectors, dgpo_prompt_sources


def test_declared_classes_exist() -> None:
    for component, base in [(dgpo_prompt_sources()[0], PromptSource), (dgpo_detectors()[0], Detector)]:
        module, _, attribute = component.implementation.partition(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), base)


def test_the_detector_takes_tensors() -> None:
    module, _, attribute = dgpo_detectors()[0].implementation.partition(":")
    detector = getattr(importlib.import_module(module), attribute)(ShapesOptions(), device=torch.device("cpu"))
    image = torch.full((1, 3, 64, 64), 0.95)
    image[:, :, 8:28, 10:30] = torch.tensor([0.88, 0.12, 0.14]).view(3, 1, 1)
    ((seen,),) = detector.detect(image)
    assert (seen.label, seen.color, seen.box, seen.score) == ("square", "red", (10.0, 8.0, 30.0, 28.0), 1.0)
