"""GenEval 2 as the judge answers it: a suite and a reward of two plugins that know each other by names only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dgpo_judge.demo_server import Server
from dgpo_judge.options import JudgeOptions
from dgpo_judge.reward import JudgeReward
from dgpo_suites.geneval2 import GenEval2Suite
from dgpo_suites.options import GenEval2Options

ROW = {
    "prompt": "a red pig",
    "atom_count": 3,
    "vqa_list": [["Are there any pigs?", "Yes"], ["Is it red?", "Yes"], ["Is it blue?", "No"]],
    "skills": ["object", "attribute", "attribute"],
}


def test_probabilities_of_the_judge_are_those_of_the_suite(tmp_path: Path) -> None:
    """The demo server says yes with the probability m of the red channel's mean."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    server = Server()
    try:
        suite = GenEval2Suite(GenEval2Options(file=str(file)))
        prompts = suite.prompts()
        (block,) = suite.rewards()
        judge = JudgeReward(JudgeOptions(**block.options, urls=[server.url]), device=torch.device("cpu"))
        scores = judge.score(torch.full((1, 3, 32, 32), 0.8), prompts)
        assert judge.provenance()["model"] == judge.judge.model
        judge.close()
    finally:
        server.close()
    assert scores.diagnostics is not None
    found = suite.measure(prompts[0], {"judge": float(scores.values[0])}, {"judge": scores.diagnostics[0]})
    m = round(0.8 * 255) / 255
    assert found["am"] == pytest.approx((m + m + (1 - m)) / 3, abs=1e-6)
    assert found["gm"] == pytest.approx((m * m * (1 - m)) ** (1 / 3), abs=1e-6)
    assert found["gm"] == pytest.approx(float(scores.values[0]), abs=1e-6)
    assert (found["attribute.sum"], found["attribute.count"]) == (pytest.approx(1, abs=1e-6), 2)
