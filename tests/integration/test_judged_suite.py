"""Suites as the judge answers them: a suite and a reward of two plugins that know each other by names only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_judge.demo_server import Server, completion, send
from dgpo_judge.options import JudgeOptions
from dgpo_judge.reward import JudgeReward
from dgpo_suites.dpg import DpgSuite
from dgpo_suites.geneval2 import GenEval2Suite
from dgpo_suites.options import DpgOptions, GenEval2Options

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


class Hesitant(Server):
    """Says Yes, with a probability below 1/2."""

    def respond(self, handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        """Answer: Yes 0.45, No 0.2, and something else."""
        said = {"Yes": 0.45, "No": 0.2, "It": 0.3495, "The": 0.0005}
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in said.items()]
        answer = completion(request, "Yes", {"content": [{**top[0], "top_logprobs": top}]})
        send(handler, 200, json.dumps(answer).encode())


def test_a_judge_that_says_yes_more_than_no_says_yes(tmp_path: Path) -> None:
    """DPG-Bench asks for an answer and not for its probability."""
    file = tmp_path / "dpg.csv"
    file.write_text(
        "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
        "0,a pig,1,0,entity - whole (pig),Is there a pig?\n"
        "0,a pig,2,1,attribute - color (pig),Is it red?\n"
    )
    server = Hesitant()
    try:
        suite = DpgSuite(DpgOptions(file=str(file)))
        prompts = suite.prompts()
        (block,) = suite.rewards()
        judge = JudgeReward(JudgeOptions(**block.options, urls=[server.url]), device=torch.device("cpu"))
        scores = judge.score(torch.full((1, 3, 32, 32), 0.8), prompts)
        judge.close()
    finally:
        server.close()
    assert scores.diagnostics is not None
    assert float(scores.values[0]) == pytest.approx(0.45)
    found = suite.measure(prompts[0], {"judge": float(scores.values[0])}, {"judge": scores.diagnostics[0]})
    assert found["score"] == 1.0
