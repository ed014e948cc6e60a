"""The suite `geneval`: the benchmark of arXiv 2310.11513, with any detector.

The aggregation is that of `evaluation/summary_scores.py` of djghosh13/geneval: the score of a task is the share of its
correct images, the total is the unweighted mean of the tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile, task_means
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval import suite
from dgpo_geneval.metadata import parse
from dgpo_geneval.options import GenEvalSuiteOptions
from dgpo_schemas.prompts import read_prompts
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["PUBLISHED", "GenEvalSuite"]

REWARD = "geneval-official"
PUBLISHED = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
"""SHA-256 of the published prompts/evaluation_metadata.jsonl."""
DETECTOR = "Mask2Former (Swin-S) of mmdetection with CLIP ViT-L-14 for colors"


class GenEvalSuite(Suite):
    """GenEval: 553 prompts of six tasks, four images each, of which a detector says whether they are correct."""

    samples_per_prompt = 4
    group_by = "tag"
    options: GenEvalSuiteOptions

    def prompts(self) -> list[Prompt]:
        """Return the prompts of the file, or those of the benchmark. Raises UserError for a file of another format."""
        if self.options.file is None:
            entries = [dict(entry) for entry in suite.benchmark()]
            return [Prompt(entry.pop("prompt"), entry) for entry in entries]
        try:
            records = read_prompts(Path(self.options.file))
        except ValueError as error:
            raise UserError(str(error)) from error
        prompts = [Prompt(record.prompt, dict(record.metadata), where) for where, record in records.items()]
        for prompt in prompts:
            try:
                parse(prompt)
            except UserError as error:
                raise UserError(f"{prompt.origin}: {error}") from error
        return prompts

    def files(self) -> list[SuiteFile]:
        """Return the prompt file; the generated prompts are written as the published file."""
        if self.options.file is None:
            text = "".join(f"{json.dumps(entry)}\n" for entry in suite.benchmark())
            return [SuiteFile("the generated evaluation_metadata.jsonl", _digest(text.encode()), PUBLISHED)]
        path = Path(self.options.file)
        return [SuiteFile(path.name, _digest(path.read_bytes()), PUBLISHED)]

    def rewards(self) -> list[RewardBlock]:
        """Return the reward `geneval-official` with the detector of the options."""
        options = self.options.model_dump(mode="json", exclude={"file"}, exclude_unset=True)
        return [RewardBlock(use=REWARD, options=options)]

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the overall score, the tasks, and the shares of correct images and prompts, all in [0, 1]."""
        correct = values[REWARD]
        tasks = task_means(correct, [str(prompt.metadata["tag"]) for prompt in prompts])
        scored = ~correct.isnan().all(1)
        any_correct = (correct.nan_to_num(0.0) > 0).any(1)[scored]
        return {
            "overall": sum(tasks.values()) / len(tasks),
            **tasks,
            "correct_images": float(correct.nanmean()),
            "correct_prompts": float(any_correct.double().mean()),
        }

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Compare the detector with the published one, which this project does not ship."""
        detector = judges[REWARD]["options"].get("detector") or {}
        named = detector.get("use") if isinstance(detector, Mapping) else detector
        return [f"the detector is {named}, the published one is {DETECTOR}"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
