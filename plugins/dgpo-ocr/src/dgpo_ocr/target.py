"""The text that a prompt asks for. Light: no torch."""

from __future__ import annotations

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt

__all__ = ["check_target", "quoted", "target_of"]


def quoted(text: str) -> str:
    """What stands between the first pair of double quotes.

    Straight quotes are the published rule (Flow-GRPO splits at them). In a text that has none at all, the first pair
    of typographic ones, “ and ”, counts. Raises ValueError saying what is wrong where there is no pair, or where a
    straight quote is escaped with a backslash: that is for JSON, which turns it into a plain one.
    """
    if '\\"' in text:
        raise ValueError('has a backslash before a double quote; write \\" in .jsonl files only')
    parts = text.split('"')
    if len(parts) == 2:
        raise ValueError("has a double quote that is not closed")
    if len(parts) > 2:
        return parts[1]
    _, opening, rest = text.partition("“")
    inside, closing, _ = rest.partition("”")
    if not opening:
        raise ValueError('has no text in double quotes, as in: a sign that says "OPEN"')
    if not closing:
        raise ValueError("has a “ that no ” closes")
    return inside


def target_of(prompt: Prompt) -> str:
    """The text that must be read: the prompt's metadata `target` if there is one, else its quoted text.

    Raises ValueError saying what is wrong: no quoted text, one without a visible character, a `target` that is no text.
    """
    if "target" in prompt.metadata:
        target, origin = prompt.metadata["target"], "the metadata key `target`"
        if not isinstance(target, str):
            raise ValueError(f"has {target!r} under {origin}, which must be a text")
    else:
        target, origin = quoted(prompt.text), "its quotes"
    if not target.split():
        raise ValueError(f"has no text in {origin}")
    return target


def check_target(prompt: Prompt) -> None:
    """Raise UserError, naming the prompt, if it has no text that can be looked for. (Who asks adds file and line.)"""
    try:
        target_of(prompt)
    except ValueError as error:
        raise UserError(f"reward 'ocr': prompt {prompt.text!r} {error}") from error
