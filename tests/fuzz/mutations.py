"""Ways to spoil a YAML document: as text, as a person or a disk would, and as data, as a program would."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

__all__ = ["DATA", "TEXT", "mutated"]

Random = random.Random
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.0, 1e-320, 1e308, float("inf"), float("nan"),
    "", " ", "x" * 5000, "\u202e\u0000"[:1], "é", "💥", "../../etc/passwd", "/", "~", "no", "1e5", "0x1f", "shift(0.3)",
    "shift(nan)", "shift(-1)", "shift(", "os:system", "dgpo_kit.toy:plugin", "__import__('os')", "{}", "[]",
    [], {}, [[]], [None], {"": None}, {"use": "dgpo"}, {"use": None}, {"use": ["a"]}, [1, "a", None, {}], {1: 2},
]  # fmt: skip
LINES = [
    "\t- x", "<<: *nothing", "<<: {a: 1}", "? [a, b]\n: c", "!!python/object/apply:os.system ['true']",
    "x: !!python/name:os.system", "x: !!binary aGk=", "x: !!timestamp 2020-01-01", "--- \n...", "---", "%YAML 1.1",
    "@x", "`", "a: b: c", "- - - -", "x: &a [*a]", "run: {name: twice}", "x: 'unclosed", 'x: "\\q"', "}", "[", "|",
    "x: >-", "# only a remark", "\u2028", "x: 2020-01-01", "x: 1:30", "x: 0o17", "x: .inf", "x: \x07",
]  # fmt: skip


# -- text -------------------------------------------------------------------------------------------------------------


def _lines(change: Callable[[Random, list[str]], None]) -> Callable[[Random, bytes], bytes]:
    def apply(rng: Random, raw: bytes) -> bytes:
        lines = raw.decode("utf-8", errors="surrogateescape").split("\n")
        change(rng, lines)
        return "\n".join(lines).encode("utf-8", errors="surrogateescape")

    apply.__name__ = change.__name__
    return apply


@_lines
def delete_a_line(rng: Random, lines: list[str]) -> None:
    del lines[rng.randrange(len(lines))]


@_lines
def double_a_line(rng: Random, lines: list[str]) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


@_lines
def swap_lines(rng: Random, lines: list[str]) -> None:
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]


@_lines
def indent_a_line(rng: Random, lines: list[str]) -> None:
    at = rng.randrange(len(lines))
    lines[at] = rng.choice([" ", "  ", "\t", " \t ", "      "]) + lines[at]


@_lines
def unindent_a_line(rng: Random, lines: list[str]) -> None:
    at = rng.randrange(len(lines))
    lines[at] = lines[at].lstrip()


@_lines
def insert_a_line(rng: Random, lines: list[str]) -> None:
    at = rng.randrange(len(lines))
    lines.insert(at, rng.choice(["", "  ", "    "]) + rng.choice(LINES))


def cut(rng: Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def change_a_byte(rng: Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def flip_bits(rng: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_a_mark(rng: Random, raw: bytes) -> bytes:
    marks = b":-{}[],#&*!|>'\"%@`?\n "
    places = [i for i, byte in enumerate(raw) if byte in marks] or [0]
    at = rng.choice(places)
    return raw[:at] + bytes([rng.choice(marks)]) + raw[at + rng.randrange(2) :]


def another_encoding(rng: Random, raw: bytes) -> bytes:
    text = raw.decode("utf-8", errors="replace")
    return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))


def other_line_ends(rng: Random, raw: bytes) -> bytes:
    return raw.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b"\x00\n"]))


def a_bomb(rng: Random, raw: bytes) -> bytes:
    """Aliases of aliases: few bytes, many values."""
    levels = rng.randrange(2, 12)
    bomb = ["bomb0: &b0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"bomb{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, levels)]
    return raw + b"\n" + "\n".join(bomb).encode() + b"\n"


def nested_deeply(rng: Random, raw: bytes) -> bytes:
    depth = rng.choice([10, 100, 1000, 20000])
    opening, closing = rng.choice([("[", "]"), ("{a: ", "}"), ("- ", "")])
    return raw + f"\ndeep: {opening * depth}1{closing * depth}\n".encode()


def nothing_but_noise(rng: Random, raw: bytes) -> bytes:
    return rng.randbytes(rng.randrange(200))


TEXT: list[Callable[[Random, bytes], bytes]] = [
    delete_a_line, double_a_line, swap_lines, indent_a_line, unindent_a_line, insert_a_line, cut, change_a_byte,
    flip_bits, change_a_mark, another_encoding, other_line_ends, a_bomb, nested_deeply, nothing_but_noise,
]  # fmt: skip


# -- data -------------------------------------------------------------------------------------------------------------


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    found = []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += [(data, key), *_places(value)]
    return found


def replace_a_value(rng: Random, data: Any) -> None:
    container, key = rng.choice(_places(data))
    container[key] = deepcopy(rng.choice(VALUES))


def nudge_a_number(rng: Random, data: Any) -> None:
    places = [(c, k) for c, k in _places(data) if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
    if places:
        container, key = rng.choice(places)
        container[key] = rng.choice([container[key] * 10, -container[key], container[key] + 0.5, container[key] / 3, 0])


def misspell_a_key(rng: Random, data: Any) -> None:
    container, key = rng.choice([(c, k) for c, k in _places(data) if isinstance(c, dict)])
    word = str(key)
    at = rng.randrange(len(word) + 1)
    container[rng.choice([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper(), word + " ", ""])] = (
        container.pop(key)
    )


def drop_a_key(rng: Random, data: Any) -> None:
    container, key = rng.choice(_places(data))
    del container[key]


def move_a_value(rng: Random, data: Any) -> None:
    (source, key), (target, place) = (rng.choice(_places(data)) for _ in range(2))
    target[place] = source[key] if not isinstance(source[key], dict | list) else dict.fromkeys("ab", 1)


def another_component(rng: Random, data: Any) -> None:
    """Plugins of other kinds, with options of others."""
    places = [(c, k) for c, k in _places(data) if k == "use"]
    if places:
        container, key = rng.choice(places)
        container[key] = rng.choice(
            ["sd3", "wan", "toy", "geneval", "ocr", "pickscore", "brightness", "uniform", "flow-sde", "flow-cps",
             "dgpo", "flow-grpo", "abs-advantage", "softmax", "sampler-steps", "dsm-gap-t-min", "miniature",
             "no-such-thing"]
        )  # fmt: skip


def more_options(rng: Random, data: Any) -> None:
    places = [c[k] for c, k in _places(data) if isinstance(c[k], dict)]
    if places:
        rng.choice(places)["options"] = {
            rng.choice(["detector", "noise", "alpha", "x", "use"]): deepcopy(rng.choice(VALUES))
        }


DATA: list[Callable[[Random, Any], None]] = [
    replace_a_value, replace_a_value, nudge_a_number, misspell_a_key, drop_a_key, move_a_value, another_component,
    more_options,
]  # fmt: skip


def mutated(rng: Random, raw: bytes) -> tuple[bytes, list[str]]:
    """A corrupted document, and the names of what was done to it."""
    names = []
    if rng.random() < 0.55:
        data = yaml.safe_load(raw)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            change = rng.choice(DATA)
            if isinstance(data, dict) and data:
                change(rng, data)
                names.append(change.__name__)
        raw = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode("utf-8", errors="replace")
    if not names or rng.random() < 0.2:
        for _ in range(rng.choice([1, 1, 2, 3])):
            spoil = rng.choice(TEXT)
            if raw:
                raw = spoil(rng, raw)
                names.append(spoil.__name__)
    return raw, names
