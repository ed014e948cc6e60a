"""The suite `ocr`: the held-out prompts of Flow-GRPO (arXiv 2505.05470), on which DGPO reports too.

The score is the mean of the published rule over the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_ocr.options import OcrSuiteOptions
from dgpo_ocr.target import check_target
from dgpo_schemas.prompts import read_prompts
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["PUBLISHED", "OcrSuite"]

PUBLISHED = "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc"
"""SHA-256 of dataset/ocr/test.txt of github.com/yifan123/flow_grpo."""
REWARD = "ocr"
ENGINE = "PaddleOCR 2.9.1"
LEAST = 0.5
"""The least confidence of a line that the published engine returns."""


class OcrSuite(Suite):
    """1,018 prompts with a quoted text, one sample each."""

    samples_per_prompt = 1
    options: OcrSuiteOptions

    def prompts(self) -> list[Prompt]:
        """Read the file. Raises UserError, naming file and line, for a prompt without a quoted text."""
        try:
            records = read_prompts(Path(self.options.file))
        except ValueError as error:
            raise UserError(str(error)) from error
        found = [Prompt(record.prompt, dict(record.metadata), where) for where, record in records.items()]
        for prompt in found:
            try:
                check_target(prompt, self.options.rule)
            except UserError as error:
                raise UserError(f"{prompt.origin}: {error}") from error
        return found

    def files(self) -> list[SuiteFile]:
        """Return the prompt file."""
        path = Path(self.options.file)
        return [SuiteFile(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), PUBLISHED)]

    def rewards(self) -> list[RewardBlock]:
        """Return the reward `ocr` with the rule and the least confidence of the options."""
        return [RewardBlock(use=REWARD, options=self.options.model_dump(mode="json", exclude={"file"}))]

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the mean over the scored samples, and the share of exact texts, in [0, 1]."""
        score = values[REWARD]
        known = score[~score.isnan()]
        return {"overall": float(known.mean()), "exact": float((known == 1.0).double().mean())}

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Compare the engine, which is never the published one, and the rule."""
        judge = judges[REWARD]
        options = judge["options"]
        engine = judge.get("engine") or options.get("engine")
        reasons = [f"the engine is {engine}, the published one is {ENGINE}"]
        if options.get("min_score") != LEAST:
            reasons.append(
                f"lines with a confidence below {options.get('min_score')} are ignored, in the published engine below "
                f"{LEAST}"
            )
        if options.get("rule") != "flowgrpo":
            reasons.append(f"the rule is {options.get('rule')}, the published one is flowgrpo")
        return reasons
