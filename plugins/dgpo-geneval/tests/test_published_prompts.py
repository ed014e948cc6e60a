"""Flow-GRPO's list of GenEval's test prompts: `prompts/flow_grpo_geneval_test.jsonl`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from dgpo_core.data.prompts import load_file
from dgpo_geneval.metadata import TASKS, parse


def test_every_published_prompt_is_understood(test_data: Path) -> None:
    file = test_data / "prompts" / "flow_grpo_geneval_test.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    prompts = load_file(file)
    assert len(prompts) == len(lines) > 2000
    assert [prompt.text for prompt in prompts] == [line["prompt"] for line in lines]
    parsed = [parse(prompt) for prompt in prompts]
    assert Counter(found.tag for found in parsed) == Counter(line["tag"] for line in lines)
    assert {found.tag for found in parsed} == set(TASKS)
    for found, line in zip(parsed, lines, strict=True):
        assert [(one.label, one.count) for one in found.include] == [(i["class"], i["count"]) for i in line["include"]]
