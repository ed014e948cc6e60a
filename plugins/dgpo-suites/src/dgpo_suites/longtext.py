"""The suite `longtext`: LongText-Bench (X-Omni, arXiv 2507.22058), long texts in images.

As `textbench/summary_scores.py` of X-Omni-Team/X-Omni counts: the words of all texts of a prompt, as a bag, of which
the sample must have as many; pooled over all samples. In Chinese, characters in place of words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_suites.judging import other_judge
from dgpo_suites.options import LongTextOptions
from dgpo_suites.reading import PromptFile, json_lines

__all__ = ["LongTextSuite", "units"]

PUBLISHED = {
    "en": "a2130769e72bd8560470a066114cdac87f80f1eb071ba6bc0f7033225a9be0d8",
    "zh": "6512cd121ac093e8113e114d76eb2c0ce967c220b18e2049e1063554ce496758",
}
"""SHA-256 of text_prompts.jsonl and text_prompts_zh.jsonl."""
LABEL = "reader"
JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct"
_LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"


def units(text: str, language: Literal["en", "zh"]) -> Counter[str]:
    """Return the words (en) or characters (zh) of a text and how often each occurs, without punctuation; in English
    without case."""
    if language == "zh":
        return Counter(re.findall(f"[{_LETTERS}]", text))
    return Counter(re.sub(rf"[^{_LETTERS}\s]", "", text).lower().split())


class LongTextSuite(Suite):
    """160 prompts with several long texts, four samples each."""

    samples_per_prompt = 4
    group_by = "category"
    options: LongTextOptions

    def prompts(self) -> list[Prompt]:
        """Read the file. Raises UserError, naming file and line, for lines of another format."""
        self._file = PromptFile(self.options.file, [PUBLISHED[self.options.language]])
        return [self._prompt(where, row) for where, row in json_lines(self._file, ("prompt", "text"))]

    def _prompt(self, where: str, row: Mapping[str, Any]) -> Prompt:
        texts = row["text"]
        if not isinstance(row["prompt"], str) or not isinstance(texts, list) or not all(map(_is_text, texts)):
            raise UserError(f"{where}: `prompt` must be a text, and `text` a list of texts")
        target = " ".join(texts)
        if not units(target, self.options.language):
            raise UserError(f"{where}: `text` has nothing to read in the language {self.options.language}")
        keys = {key: row[key] for key in ("prompt_id", "length") if key in row}
        return Prompt(row["prompt"], {"target": target, "category": row.get("category", "all"), **keys}, where)

    def files(self) -> list[SuiteFile]:
        """Return the prompt file."""
        return [self._file.file]

    def rewards(self) -> list[RewardBlock]:
        """Return the reward that reads the samples."""
        reader = self.options.reader
        return [reader.block(LABEL, **({"form": "reading"} if reader.use == "judge" else {}))]

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        """Return how many of the prompt's words a sample has, and how many there are."""
        read = diagnostics[LABEL].get("text")
        if math.isnan(scores[LABEL]) or not isinstance(read, str):
            return {"found": math.nan, "words": math.nan}
        asked = units(prompt.metadata["target"], self.options.language)
        found = asked & units(read, self.options.language)
        return {"found": float(found.total()), "words": float(asked.total())}

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the share of the words of all samples that were read, also by category and length, in [0, 1]."""
        scores = {"overall": _share(values, range(len(prompts)))}
        for key in ("category", "length"):
            rows: dict[str, list[int]] = {}
            for row, prompt in enumerate(prompts):
                if key in prompt.metadata:
                    rows.setdefault(str(prompt.metadata[key]), []).append(row)
            scores |= {name: _share(values, found) for name, found in sorted(rows.items())}
        return scores

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Compare the reader with the published one."""
        judge = judges[LABEL]
        if judge["use"] == "judge":
            return [*other_judge(judge, JUDGE), "the judge is asked in other words than in the published script"]
        reader = judge.get("engine") or judge["options"].get("engine") or judge.get("model") or judge["use"]
        return [f"the texts are read by {reader}, the published one is {JUDGE}"]


def _share(values: Mapping[str, Tensor], rows: Sequence[int]) -> float:
    found, words = (values[name][list(rows)].nansum() for name in ("found", "words"))
    return float(found / words) if words else math.nan


def _is_text(value: object) -> bool:
    return isinstance(value, str)
