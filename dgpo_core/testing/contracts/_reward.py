"""Rewards and the detectors behind them: one answer a sample, whatever else is in the batch."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.testing.contracts._assertions import close, equal, global_state_left_alone, that
from dgpo_core.types import Prompt, Scores

__all__ = ["check_detector", "check_reward"]


def check_reward(reward: RewardModel, media: Tensor, prompts: Sequence[Prompt]) -> None:
    """One value in the declared range or a missing mark per sample, whatever else is in the batch; any thread.

    media [B, ...] as the reward takes them, with the prompt of each; include some that are hard to score.
    """
    low, high = reward.range
    that(reward.media and reward.media <= {"image", "video"}, "it declares whether it takes images or videos")
    that(low < high, f"its range {reward.range} goes from the smallest to the largest value")
    reward.check_prompts(prompts)
    if reward.group_by is not None:
        that(
            all(reward.group_by in p.metadata for p in prompts), f"prompts have the key {reward.group_by} it groups by"
        )
    kept = media.clone()
    with global_state_left_alone("a reward"):
        scores = reward.score(media, prompts)
        _check_scores(reward, scores, len(prompts))
        equal(media, kept, "media are left alone")
        _same_scores(reward.score(media, prompts), scores, "scores are the same every time", 0.0)
        alone = [reward.score(media[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))]
        backwards = reward.score(media.flip(0), prompts[::-1])
        _check_scores(reward, reward.score(media[:0], ()), 0)
        _same_scores(_in_a_thread(lambda: reward.score(media, prompts)), scores, "a thread makes no difference", 0.0)
    values, missing = torch.cat([s.values for s in alone]), torch.cat([s.missing for s in alone])
    promise = "a score does not depend on the others in the batch"
    _same_scores(Scores(values, missing), scores, promise, 1e-5)
    _same_scores(Scores(backwards.values.flip(0), backwards.missing.flip(0)), scores, promise, 1e-5)


def _check_scores(reward: RewardModel, scores: Scores, count: int) -> None:
    values, missing = scores.values, scores.missing
    that(values.shape == (count,), f"there is one value a sample: [{count}], not {list(values.shape)}")
    that(missing.shape == (count,), f"there is one missing mark a sample: [{count}], not {list(missing.shape)}")
    that(values.dtype == torch.float32, f"values are float32, not {values.dtype}")
    that(missing.dtype == torch.bool, f"missing marks are bool, not {missing.dtype}")
    present = values[~missing]
    low, high = reward.range
    that(present.isfinite().all(), "a value that is no number is marked missing")
    that(bool(((present >= low) & (present <= high)).all()), f"values lie in the declared range {reward.range}")
    that(len(scores.diagnostics) in (0, count), f"there are {count} diagnostics or none, not {len(scores.diagnostics)}")
    json.dumps([dict(d) for d in scores.diagnostics], allow_nan=False)


def _same_scores(found: Scores, expected: Scores, promise: str, tolerance: float) -> None:
    equal(found.missing.cpu(), expected.missing.cpu(), promise)
    present = ~expected.missing
    close(found.values[present], expected.values[present], promise, tolerance)


def _in_a_thread(call: Callable[[], Scores]) -> Scores:
    found: list[Scores] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    that(found, "it can be called from another thread")
    return found[0]


def check_detector(detector: Any, images: Tensor) -> None:
    """Labels it declares, boxes inside the image, and detections that do not depend on the batch.

    detector: of `dgpo_geneval.detector.Detector`; images [B, 3, H, W], float in [0, 1].
    """
    that(detector.labels and len(set(detector.labels)) == len(detector.labels), "it declares its labels, each once")
    height, width = images.shape[-2:]
    kept = images.clone()
    with global_state_left_alone("a detector"):
        found = detector.detect(images)
        again = detector.detect(images)
        alone = [detector.detect(images[i : i + 1]) for i in range(len(images))]
    equal(images, kept, "images are left alone")
    that(len(found) == len(images), f"there is one list of detections an image: {len(images)}, not {len(found)}")
    for detection in (detection for one in found for detection in one):
        x0, y0, x1, y1 = detection.box
        that(detection.label in detector.labels, f"{detection.label!r} is one of its labels")
        that(math.isfinite(detection.score), "scores are finite")
        that(0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, f"the box {detection.box} lies in the image")
        if detection.mask is not None:
            that(detection.mask.shape == (height, width) and detection.mask.dtype == bool, "a mask is bool [H, W]")
    that(again == found, "detections are the same every time")
    that([one for (one,) in alone] == found, "an image's detections do not depend on the others")
