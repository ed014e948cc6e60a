"""Whether a judge is the published one."""

from __future__ import annotations

import pytest

from dgpo_suites.judging import other_judge

PUBLISHED = "Qwen/Qwen3-VL-8B-Instruct"
CACHED = "/cache/hub/models--Qwen--Qwen3-VL-8B-Instruct/snapshots/0c351dd01ed87e9c1b53cbc748cba10e6187ff3b"


@pytest.mark.parametrize("root", [PUBLISHED, "/models/Qwen3-VL-8B-Instruct/", CACHED])
def test_what_is_loaded_counts_and_not_its_name(root: str) -> None:
    assert other_judge({"use": "judge", "model": "lamp", "root": root, "options": {}}, PUBLISHED) == []


def test_another_model_under_the_published_name_is_another_judge() -> None:
    judge = {"use": "judge", "model": PUBLISHED, "root": "/models/Qwen2.5-VL-3B-Instruct", "options": {}}
    told = f"the judge is /models/Qwen2.5-VL-3B-Instruct, served as {PUBLISHED}, the published one is {PUBLISHED}"
    assert other_judge(judge, PUBLISHED) == [told]


@pytest.mark.parametrize("root", [{}, {"root": None}, {"root": ""}])
def test_without_a_root_the_name_counts(root: dict[str, str | None]) -> None:
    assert other_judge({"use": "judge", "model": PUBLISHED, "options": {}} | root, PUBLISHED) == []
    (told,) = other_judge({"use": "judge", "model": "lamp", "options": {}} | root, PUBLISHED)
    assert told == f"the judge is lamp, the published one is {PUBLISHED}"
    (told,) = other_judge({"use": "mine", "options": {}} | root, PUBLISHED)
    assert told == f"the judge mine does not name its model, the published one is {PUBLISHED}"
