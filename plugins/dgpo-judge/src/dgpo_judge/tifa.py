"""The questions of a prompt for Soft-TIFA: its metadata `questions`, or `vqa_list` as GenEval 2 writes it."""

from __future__ import annotations

from collections.abc import Mapping

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.text import clean

__all__ = ["questions_of"]

KEYS = ("questions", "vqa_list")
MOST = 100
"""Most questions of a prompt."""


def questions_of(prompt: Prompt) -> list[tuple[str, str]]:
    """Return (question, expected answer) of each question. Raises UserError that names the prompt."""
    where = f"{prompt.origin or 'prompt'}: {clean(prompt.text, 80)!r}"
    key = next((key for key in KEYS if prompt.metadata.get(key)), None)
    if key is None:
        raise UserError(
            f"{where}: has no questions, which `form: soft-tifa` asks; give the prompt the key `questions` with a list "
            "of [question, expected answer]"
        )
    listed = prompt.metadata[key]
    if not isinstance(listed, list | tuple) or len(listed) > MOST:
        raise UserError(f"{where}: `{key}` must be a list of at most {MOST} pairs [question, expected answer]")
    return [_pair(one, f"{where}: `{key}`, entry {i}") for i, one in enumerate(listed, 1)]


def _pair(one: object, where: str) -> tuple[str, str]:
    if isinstance(one, Mapping):
        one = [one.get("question"), one.get("answer")]
    if not isinstance(one, list | tuple) or len(one) != 2:
        raise UserError(f"{where}: must be a pair [question, expected answer]")
    question, answer = one
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip() or not answer.strip():
        raise UserError(f"{where}: question and expected answer must be texts")
    if len(answer.split()) != 1:
        raise UserError(f"{where}: the expected answer {clean(answer, 40)!r} must be one word: its probability is read")
    return question.strip(), answer.strip()
