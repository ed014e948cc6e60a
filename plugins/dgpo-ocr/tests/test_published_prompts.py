"""Targets of Flow-GRPO's test prompts for text rendering: `prompts/flow_grpo_ocr_test.txt`."""

from __future__ import annotations

from pathlib import Path

from dgpo_core.data.prompts import load_file
from dgpo_ocr.target import target_of


def test_every_published_prompt_has_its_target(test_data: Path) -> None:
    """Flow-GRPO's own rule takes the text after the first straight quote."""
    file = test_data / "prompts" / "flow_grpo_ocr_test.txt"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = load_file(file)
    assert len(prompts) == len(lines) > 1000
    assert [target_of(prompt) for prompt in prompts] == [line.split('"')[1] for line in lines]
