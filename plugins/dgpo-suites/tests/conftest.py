"""A registry with the suites and a judge whose answers are in the pictures; prompt files in the published formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.api.suites import OpenedSuite, open_suite, suite_record
from dgpo_core.contracts import RewardModel
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt, Scores
from dgpo_schemas.base import Options, UseBlock
from dgpo_schemas.suites import SuiteRecord
from dgpo_suites import plugin

Row = Sequence[float | None]


class JudgeOptions(Options):
    """Options of the judge in the pictures."""

    form: str = ""
    model: str = "lamp"
    template: str | None = None


class Pictured(RewardModel):
    """Answers question i with the value of pixel i of the first line: 2 means that there is no answer.

    Reads the words of the prompt's target whose pixel is above 1/2. The score is the mean of the pixels.
    """

    range = (0.0, 1.0)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Read the answers."""
        rows = [sample[0, 0].tolist() for sample in media]
        found = [self._answers(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        values = torch.tensor([value for value, _ in found], dtype=torch.float32)
        return Scores(values.nan_to_num(0.0), values.isnan(), tuple(diagnostics for _, diagnostics in found))

    def provenance(self) -> Mapping[str, Any]:
        """Return the model."""
        return {"model": self.options.model}

    def _answers(self, row: list[float], prompt: Prompt) -> tuple[float, dict[str, Any]]:
        if "questions" in prompt.metadata:
            answers = row[: len(prompt.metadata["questions"])]
        elif "target" in prompt.metadata:
            answers = row[: len(prompt.metadata["target"].split())]
        else:
            answers = row[:1]
        if 2.0 in answers:
            return float("nan"), {"reason": "no answer"}
        words = str(prompt.metadata.get("target", "")).split()
        return sum(answers) / len(answers), {
            "probabilities": answers,
            "clauses": [{"text": "?", "ok": p >= 0.5} for p in answers],
            "text": " ".join(word for word, p in zip(words, answers, strict=False) if p > 0.5),
        }


class _JudgePlugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("pictured", "Answers in the pictures", f"{__name__}:Pictured", JudgeOptions)]


@pytest.fixture
def registry() -> Registry:
    """The suites and the judge."""
    made = Registry(discover=False)
    made.register(plugin, distribution="dgpo-suites", version="0.2.0")
    made.register(_JudgePlugin(), distribution="pictured")
    return made


@pytest.fixture
def opened(registry: Registry) -> Callable[..., OpenedSuite]:
    """`opened("dpg", file=path)`: the suite with the judge in the pictures."""

    def call(name: str, **options: Any) -> OpenedSuite:
        judge = "reader" if name == "longtext" else "judge"
        if name not in ("parti", "drawbench"):
            options = {judge: {"use": "pictured"}} | options
        return open_suite(UseBlock(use=name, options=options), registry)

    return call


@pytest.fixture
def judged(opened: Callable[..., OpenedSuite]) -> Callable[..., SuiteRecord]:
    """`judged("dpg", answers, file=path)`: the record of a suite for the answers of each sample, prompt by prompt."""

    def call(name: str, answers: Sequence[Row], **options: Any) -> SuiteRecord:
        suite = opened(name, **options)
        members = len(answers) // len(suite.prompts)
        width = max(map(len, answers))
        media = torch.zeros(len(answers), 3, 1, width)
        for i, row in enumerate(answers):
            media[i, 0, 0, : len(row)] = torch.tensor([2.0 if p is None else p for p in row])
        model = Pictured(JudgeOptions(**suite.rewards[0].options), device=torch.device("cpu"))
        scores = model.score(media, [suite.prompts[i // members] for i in range(len(answers))])
        label = suite.rewards[0].label
        samples = [
            {label: {**diagnostics, "value": None if missing else value}}
            for value, missing, diagnostics in zip(
                scores.values.double().tolist(), scores.missing.tolist(), scores.diagnostics, strict=True
            )
        ]
        return suite_record(suite, samples, {label: model}, target="files", resamples=20)

    return call


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """`write_lines(rows)`: the path of a .jsonl file."""

    def call(rows: Sequence[Any], name: str = "prompts.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return str(path)

    return call
