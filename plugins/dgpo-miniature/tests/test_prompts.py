"""The prompt source: valid metadata, determinism, equal shares of tasks, and disjoint splits."""

from __future__ import annotations

from collections import Counter

import pytest

from dgpo_core.types import Prompt
from dgpo_geneval.metadata import Metadata, check_against
from dgpo_miniature.captions import TASKS, all_captions
from dgpo_miniature.detector import ShapeDetector
from dgpo_miniature.options import MiniaturePromptsOptions
from dgpo_miniature.prompts import MiniaturePrompts, captions, content_key, prompts


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_metadata_is_valid_and_tasks_share_equally(split: str) -> None:
    source = MiniaturePrompts(MiniaturePromptsOptions(train_count=600, heldout_count=600))
    found = source.prompts(split)  # type: ignore[arg-type]
    for prompt in found:
        assert Metadata.model_validate(dict(prompt.metadata)).tag in TASKS
        check_against(prompt, ShapeDetector.labels, ShapeDetector.thresholds)
        assert isinstance(prompt, Prompt)
        assert prompt.metadata["prompt"] == prompt.text
    assert Counter(prompt.metadata["tag"] for prompt in found) == dict.fromkeys(TASKS, 100)


def test_splits_share_no_text() -> None:
    train = {entry["prompt"] for entry in prompts("train", 5000)}
    heldout = {entry["prompt"] for entry in prompts("heldout", 5000)}
    assert not train & heldout
    assert len(train) > 300
    assert len(heldout) > 60


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_content(task: str) -> None:
    train = {content_key(caption) for caption in captions("train", task)}
    heldout = {content_key(caption) for caption in captions("heldout", task)}
    every = {content_key(caption) for caption in all_captions(task)}
    assert train | heldout == every
    if task == "single_object":
        assert train == heldout
    else:
        assert not train & heldout
        assert len(heldout) >= len(every) / 4


@pytest.mark.parametrize("task", TASKS)
def test_both_splits_contain_every_class_and_color(task: str) -> None:
    for split in ("train", "heldout"):
        every = {part for caption in all_captions(task) for pair in caption.objects for part in pair}
        assert {part for caption in captions(split, task) for pair in caption.objects for part in pair} == every


def test_same_arguments_same_prompts() -> None:
    assert prompts("train", 240, 5) == prompts("train", 240, 5)
    assert prompts("train", 240, 5) == prompts("train", 480, 5)[:240]
    assert prompts("train", 240, 5) != prompts("train", 240, 6)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' and 'heldout'"):
        prompts("test", 6)  # type: ignore[arg-type]
