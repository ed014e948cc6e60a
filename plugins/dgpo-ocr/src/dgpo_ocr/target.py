"""The text that a prompt asks for. Light: no torch."""

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
"""Opening marks with what closes them, in the languages that do. » and ” open where they are not closing marks."""
_ALIKE = "”＂"
"""Marks that open and close alike, or stand behind a number as inches."""
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
"""Marks around a text that may be meant as quotes, and may be something else: they are named in the message."""
_READ = '"…", “…”, „…“, «…», »…«, ”…”, 「…」, 『…』, 〝…〟 and ＂…＂'
_CLOSING = set("".join(_TYPOGRAPHIC.values())) - set(_ALIKE)
_NOT_IN_PAIRS = "the double quotes are not in pairs (after a number one is an inch mark, and needs no other)"
_LONGEST = 200
"""Characters of a text in a message."""


def short(text: str) -> str:
    """A text as it stands in a message: with escapes for what cannot be printed, cut short."""
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}... ({len(text)} characters)"


def quoted(text: str, rule: Rule = "normalized") -> str:
    """What stands between the first pair of double quotes.

    `normalized`: straight quotes first; in a text that has none, the first pair of typographic ones of any language, as
    “ ”, „ “ or « », without the white space inside. A mark right behind a number is an inch mark. Raises ValueError
    saying what is wrong where there is no pair, where marks are left over, so that the pair might be the words between
    two texts, where straight ones stand inside typographic ones (unless these hold the whole prompt), so that either
    might be meant, or where a quote is escaped with a backslash: that is for JSON, which removes it.

    `flowgrpo`: what its `prompt.split('"')[1]` gives, whatever the marks mean. Raises ValueError where that fails.
    """
    if rule == "flowgrpo":
        _, mark, rest = text.partition('"')
        if not mark:
            raise ValueError("has no double quote, at which the rule 'flowgrpo' splits a prompt")
        return rest.partition('"')[0]
    if '\\"' in text:
        raise ValueError('has a backslash before a double quote; write \\" in .jsonl files only')
    straight = _pairs(text)
    if not straight:
        return _typographic(text)
    _check_not_inside(text, straight[0])
    return straight[0]


def target_of(prompt: Prompt, rule: Rule = "normalized") -> str:
    """The text that must be read: the prompt's metadata `target` if there is one, else its quoted text. Null and NaN,
    as tables fill a column, are none. The rule `flowgrpo` knows quotes only; a `target` may repeat them.

    Raises ValueError saying what is wrong: no quoted text, one that leaves nothing to compare, a `target` that is no
    text.
    """
    origin = "its quotes"
    target = prompt.metadata.get("target")
    if target is None or target != target:
        target = quoted(prompt.text, rule)
    else:
        if not isinstance(target, str):
            raise ValueError(f"has {show(target)} under the metadata key `target`, which must be a text")
        if rule == "flowgrpo":
            in_quotes = quoted(prompt.text, rule)
            if in_quotes != target:
                raise ValueError(
                    f"has {short(target)} under the metadata key `target` and {short(in_quotes)} in its quotes; the "
                    "rule 'flowgrpo' compares with its quotes alone"
                )
        origin = "the metadata key `target`"
    if rule == "normalized":
        if lone_surrogate(target) is not None:
            raise ValueError(f"has half of a character (a lone surrogate) in {origin}")
        if not squeeze(target):
            raise ValueError(f"has no text in {origin}")
    elif not target.replace(" ", ""):
        raise ValueError(f"has no text in {origin}")
    return target


def check_target(prompt: Prompt, rule: Rule = "normalized") -> None:
    """Raise UserError, naming the prompt, if it has no text that can be looked for. (Who asks adds file and line.)"""
    try:
        target_of(prompt, rule)
    except ValueError as error:
        raise UserError(f"reward 'ocr': prompt {short(prompt.text)} {error}") from error


def _pairs(text: str, mark: str = '"') -> list[str]:
    """What stands between marks that open and close alike. Raises ValueError where one is left over, or where two look
    as if they closed one text and opened another."""
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
    """Raise ValueError where straight quotes stand inside typographic ones, but for those around the whole prompt."""
    before, _, rest = text.partition(f'"{inner}"')
    for mark, closing in _TYPOGRAPHIC.items():
        if mark in "”»＂" or mark not in before:
            continue
        start = before.rindex(mark)
        inside, found, after = _partition(rest, closing)
        if found and not _partition(before[start + 1 :], closing)[1] and (before[:start].strip() or after.strip(" .")):
            outer = f'{before[start:]}"{inner}"{inside}{found}'
            raise ValueError(
                f"has {short(inner)} in quotes inside {short(outer)}; say which is meant under the metadata key "
                "`target`, or use one pair of quotes"
            )


def _is_between(text: str, start: int, end: int, mark: str) -> bool:
    """Whether the words there, with marks before and behind them, stand between two texts rather than in one."""
    left, first, last, right = (text[place : place + 1] or " " for place in (start - 2, start, end - 1, end + 1))
    closes = (left.isalnum() or left == mark) and first.isspace()
    opens = last.isspace() and (right.isalnum() or right == mark)
    return closes or opens or (first.isspace() and _is_number(text[start:end].rstrip()[-1:]))


def _is_inch_mark(text: str, place: int) -> bool:
    """Whether the mark there, which closes nothing, belongs to the number before it: `12"`, or `12 "` where no text
    begins behind it."""
    before, after = text[max(0, place - 9) : place], text[place + 1 : place + 2]
    number = before if after.strip() else before.rstrip()
    return _is_number(number[-1:])


def _is_number(character: str) -> bool:
    return character != "" and unicodedata.category(character) in ("Nd", "No")


def _typographic(text: str) -> str:
    """What stands between the first pair of typographic double quotes. Raises ValueError where there is none."""
    for place, mark in enumerate(text):
        closing = _TYPOGRAPHIC.get(mark, "")
        if not closing or (mark in _ALIKE and _is_inch_mark(text, place)):
            continue
        inside, found, _ = _partition(text[place + 1 :], closing)
        if not found and mark in "”»":
            continue  # a closing mark that nothing opened
        if not found or set(inside) & _FAMILY[mark]:
            raise ValueError(f"has a {mark} that no {' or '.join(closing)} closes: {_NOT_IN_PAIRS}")
        if found == mark:
            _pairs(text[place:], mark)
        return inside.strip()
    other, single = _OTHER.search(text), _SINGLE.search(text)
    closing = next((mark for mark in text if mark in _CLOSING), "")
    hint = ""
    if other:
        hint = f"; {short(other[0])}, in such marks, does not count"
    elif single:
        hint = f"; {single[0] if len(single[0]) <= _LONGEST else short(single[0])}, in single quotes, does not count"
    elif closing:
        hint = f"; nothing opens what {closing} closes"
    raise ValueError(
        f'has no text in double quotes, as in: a sign that says "OPEN"{hint} (double quotes are {_READ}; without them '
        "the text may stand under the metadata key `target`)"
    )


def _partition(text: str, marks: str) -> tuple[str, str, str]:
    """`str.partition` at the first of several marks."""
    found = re.search(f"[{marks}]", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")
