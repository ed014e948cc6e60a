"""The target: the text that a prompt asks for. Does not import torch."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_ocr.normal import squeeze
from dgpo_schemas.problems import show
from dgpo_schemas.text import lone_surrogate

if TYPE_CHECKING:
    from dgpo_ocr.rule import Rule

__all__ = ["check_target", "quoted", "short", "target_of"]

_TYPOGRAPHIC = {
    "“": "”", "„": "“”", "‟": "”", "”": "”", "«": "»", "»": "«»", "「": "」", "『": "』", "〝": "〞〟", "＂": "＂",
    "❝": "❞", "｢": "｣", "﹁": "﹂", "﹃": "﹄", "⹂": "“”",
}  # fmt: skip
"""Opening quotes with their closing quotes, of all languages. » and ” are also opening quotes in some."""
_ALIKE = "”＂"
"""Quotes that both open and close, or are inch marks after a number."""
_FAMILY = {
    mark: set(family)
    for family in ("“”„‟⹂", "«»", "「」", "『』", "〝〞〟", "＂", "❝❞", "｢｣", "﹁﹂", "﹃﹄")
    for mark in family
}
_SINGLE = re.compile(
    r"(?<!\w)(?:'([^']{1,400})'|‘([^’]{1,400})’|’([^’]{1,400})’|‚([^‘’]{1,400})[‘’]|‹([^›]{1,400})›|›([^‹›]{1,400})[‹›]|＇([^＇]{1,400})＇|❛([^❜]{1,400})❜)(?!\w)"
)
_OTHER = re.compile(
    r"(?<!\w)(?:''([^']{1,400})''|``([^'`]{1,400})''|`{1,3}([^`]{1,400})`{1,3}|´([^´]{1,400})´|″([^″]{1,400})″|′([^′]{1,400})′|״([^״]{1,400})״|<<([^<>]{1,400})>>)(?!\w)"
    r"|《([^》]{1,400})》|〈([^〉]{1,400})〉|【([^】]{1,400})】|&quot;(.{1,400}?)&quot;|&#34;(.{1,400}?)&#34;"
)
"""Marks around a text that may be meant as quotes: the message names them."""
_READ = '"…", “…”, „…“, «…», »…«, ”…”, 「…」, 『…』, 〝…〟 and ＂…＂'
_CLOSING = set("".join(_TYPOGRAPHIC.values())) - set(_ALIKE)
_NOT_IN_PAIRS = "the double quotes are not in pairs (after a number, a double quote is an inch mark)"
_LONGEST = 200
"""Most characters of a text in a message."""


def short(text: str) -> str:
    """Format a text for a message: escaped and truncated."""
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}... ({len(text)} characters)"


def quoted(text: str, rule: Rule = "normalized") -> str:
    """Return the text between the first pair of double quotes.

    `normalized`: the first pair of straight quotes, or without straight quotes the first pair of typographic quotes of
    any language, such as “ ”, „ “ or « », stripped of white space. A mark directly after a number is an inch mark.
    Raises ValueError if there is no pair; if quotes are left over, so that the pair could enclose the words between two
    texts; if straight quotes are inside typographic quotes (unless these enclose the whole prompt); or if a quote is
    escaped with a backslash, which belongs in JSON only.

    `flowgrpo`: the result of its `prompt.split('"')[1]`, regardless of what the marks mean. Raises ValueError if that
    fails.
    """
    if rule == "flowgrpo":
        _, mark, rest = text.partition('"')
        if not mark:
            raise ValueError("has no double quote, which the rule 'flowgrpo' requires")
        return rest.partition('"')[0]
    if '\\"' in text:
        raise ValueError('has a backslash before a double quote; write \\" in .jsonl files only')
    straight = _pairs(text)
    if not straight:
        return _typographic(text)
    _check_not_inside(text, straight[0])
    return straight[0]


def target_of(prompt: Prompt, rule: Rule = "normalized") -> str:
    """Return the text that must be read: the prompt's metadata `target` if it is set, else its quoted text.

    Null and NaN, which tables use for empty cells, count as not set. The rule `flowgrpo` uses only the quotes; `target`
    may repeat the same text. Raises ValueError if there is no quoted text, if nothing of it is left to compare, or if
    `target` is not a string.
    """
    origin = "its quotes"
    target = prompt.metadata.get("target")
    if target is None or target != target:
        target = quoted(prompt.text, rule)
    else:
        if not isinstance(target, str):
            raise ValueError(f"has {show(target)} under the metadata key `target`, which must be a string")
        if rule == "flowgrpo":
            in_quotes = quoted(prompt.text, rule)
            if in_quotes != target:
                raise ValueError(
                    f"has {short(target)} under the metadata key `target` and {short(in_quotes)} in its quotes; the "
                    "rule 'flowgrpo' uses only the quotes"
                )
        origin = "the metadata key `target`"
    if rule == "normalized":
        if lone_surrogate(target) is not None:
            raise ValueError(f"has a lone surrogate, which is not valid Unicode, in {origin}")
        if not squeeze(target):
            raise ValueError(f"has no text in {origin}")
    elif not target.replace(" ", ""):
        raise ValueError(f"has no text in {origin}")
    return target


def check_target(prompt: Prompt, rule: Rule = "normalized") -> None:
    """Raise UserError, naming the prompt, if it has no valid target. The caller adds file and line."""
    try:
        target_of(prompt, rule)
    except ValueError as error:
        raise UserError(f"reward 'ocr': prompt {short(prompt.text)} {error}") from error


def _pairs(text: str, mark: str = '"') -> list[str]:
    """Return the texts between pairs of the same mark.

    Raises ValueError if a mark is left over, or if two marks look as if they closed one text and opened another.
    """
    found: list[str] = []
    opened: int | None = None
    for place in [place for place, character in enumerate(text) if character == mark]:
        if opened is not None:
            if _is_between(text, opened, place, mark):
                raise ValueError(f"has {short(text[opened:place])} between two texts: {_NOT_IN_PAIRS}")
            found.append(text[opened:place])
            opened = None
        elif not _is_inch_mark(text, place):
            opened = place + 1
    if opened is not None:
        raise ValueError(f"has a double quote that is not closed: {_NOT_IN_PAIRS}")
    return found


def _check_not_inside(text: str, inner: str) -> None:
    """Raise ValueError if straight quotes are inside typographic ones that do not enclose the whole prompt."""
    before, _, rest = text.partition(f'"{inner}"')
    for mark, closing in _TYPOGRAPHIC.items():
        if mark in "”»＂" or mark not in before:
            continue
        start = before.rindex(mark)
        inside, found, after = _partition(rest, closing)
        if found and not _partition(before[start + 1 :], closing)[1] and (before[:start].strip() or after.strip(" .")):
            outer = f'{before[start:]}"{inner}"{inside}{found}'
            raise ValueError(
                f"has {short(inner)} in quotes inside {short(outer)}; set the metadata key `target`, or use one "
                "pair of quotes"
            )


def _is_between(text: str, start: int, end: int, mark: str) -> bool:
    """Whether the words at [start, end), enclosed by marks, are between two texts instead of being one."""
    left, first, last, right = (text[place : place + 1] or " " for place in (start - 2, start, end - 1, end + 1))
    closes = (left.isalnum() or left == mark) and first.isspace()
    opens = last.isspace() and (right.isalnum() or right == mark)
    return closes or opens or (first.isspace() and _is_number(text[start:end].rstrip()[-1:]))


def _is_inch_mark(text: str, place: int) -> bool:
    """Whether the mark at `place`, which closes nothing, is an inch mark: `12"`, or `12 "` if no text follows it."""
    before, after = text[max(0, place - 9) : place], text[place + 1 : place + 2]
    number = before if after.strip() else before.rstrip()
    return _is_number(number[-1:])


def _is_number(character: str) -> bool:
    return character != "" and unicodedata.category(character) in ("Nd", "No")


def _typographic(text: str) -> str:
    """Return the text between the first pair of typographic double quotes. Raises ValueError if there is none."""
    for place, mark in enumerate(text):
        closing = _TYPOGRAPHIC.get(mark, "")
        if not closing or (mark in _ALIKE and _is_inch_mark(text, place)):
            continue
        inside, found, _ = _partition(text[place + 1 :], closing)
        if not found and mark in "”»":
            continue  # a closing mark without an opening one
        if not found or set(inside) & _FAMILY[mark]:
            raise ValueError(f"has a {mark} without a closing {' or '.join(closing)}: {_NOT_IN_PAIRS}")
        if found == mark:
            _pairs(text[place:], mark)
        return inside.strip()
    other, single = _OTHER.search(text), _SINGLE.search(text)
    closing = next((mark for mark in text if mark in _CLOSING), "")
    hint = ""
    if other:
        hint = f"; the marks of {short(other[0])} do not count as double quotes"
    elif single:
        shown = single[0] if len(single[0]) <= _LONGEST else short(single[0])
        hint = f"; the single quotes of {shown} do not count"
    elif closing:
        hint = f"; {closing} has no opening quote"
    raise ValueError(
        f'has no text in double quotes, as in: a sign that says "OPEN"{hint} (double quotes are {_READ}; without them, '
        "set the metadata key `target`)"
    )


def _partition(text: str, marks: str) -> tuple[str, str, str]:
    """Split a text at the first of several marks, as `str.partition`."""
    found = re.search(f"[{marks}]", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")
