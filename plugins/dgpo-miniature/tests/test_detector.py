"""The detector passes its contract checks, and rewards with it distinguish its examples."""

from __future__ import annotations

import pytest
import torch

from dgpo_geneval.contract import check_detector
from dgpo_geneval.metadata import COLORS as GENEVAL_COLORS
from dgpo_geneval.metadata import TASKS
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalFlowGRPOReward, GenEvalOfficialReward, GenEvalReward
from dgpo_kit.contracts import check_reward
from dgpo_miniature.detector import ShapeDetector
from dgpo_miniature.options import ShapesOptions
from dgpo_schemas.diagnostics import Diagnostics

CPU = torch.device("cpu")


@pytest.fixture
def detector() -> ShapeDetector:
    return ShapeDetector(ShapesOptions(), device=CPU)


def test_contract(detector: ShapeDetector) -> None:
    check_detector(detector, torch.stack([example.media for example in detector.examples()]))


def test_detected_colors_are_declared(detector: ShapeDetector) -> None:
    assert set(detector.colors) < set(GENEVAL_COLORS)
    media = torch.stack([example.media for example in detector.examples()])
    found = {detection.color for one in detector.detect(media) for detection in one}
    assert found == set(detector.colors)


def test_good_and_bad_examples_of_every_task(detector: ShapeDetector) -> None:
    examples = detector.examples()
    assert [(e.prompt.metadata["tag"], e.good) for e in examples] == [(t, g) for t in TASKS for g in (True, False)]
    assert len({example.name for example in examples}) == len(examples)


@pytest.mark.parametrize("kind", [GenEvalReward, GenEvalOfficialReward, GenEvalFlowGRPOReward])
def test_rewards_distinguish_the_examples(detector: ShapeDetector, kind: type[GenEvalReward]) -> None:
    """Good examples get the maximum in every variant, bad ones less; clauses and marks agree with the value."""
    reward = kind(GenEvalOptions(), device=CPU, detector=detector)
    examples = reward.examples()
    media, prompts = torch.stack([e.media for e in examples]), [e.prompt for e in examples]
    check_reward(reward, media, prompts)
    scores = reward.score(media, prompts)
    for example, value, said in zip(examples, scores.values.tolist(), scores.diagnostics, strict=True):
        reported = Diagnostics.model_validate(said)
        assert (value == 1) is example.good
        if example.good:
            assert all(clause.ok for clause in reported.clauses)
            assert all(mark.ok for mark in reported.marks)
        else:
            assert not all(clause.ok for clause in reported.clauses)
