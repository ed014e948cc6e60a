"""Prompt files as editors, shells and table programs write them."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from dgpo_schemas.prompts import read_prompts

TEXT = "a red circle\nein grüner Kreis 😀\n赤い円\n"
PROMPTS = ["a red circle", "ein grüner Kreis 😀", "赤い円"]


def read(path: Path, content: bytes) -> list[tuple[str, str]]:
    """(place without the directory, prompt) of each."""
    path.write_bytes(content)
    return [(where.removeprefix(f"{path}:"), record.prompt) for where, record in read_prompts(path).items()]


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path.parent}/", "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    found = read(tmp_path / "p.txt", TEXT.replace("\n", end).encode(encoding))
    assert found == [(str(i), prompt) for i, prompt in enumerate(PROMPTS, 1)]


def test_big_endian_with_its_mark(tmp_path: Path) -> None:
    assert [p for _, p in read(tmp_path / "p.txt", b"\xfe\xff" + TEXT.encode("utf-16-be"))] == PROMPTS
    assert [p for _, p in read(tmp_path / "p.txt", b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"))] == PROMPTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_the_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    message = refused(tmp_path / "p.txt", b"".join(line.encode(encoding) for line in PROMPTS[:2]))
    assert message.startswith(f"p.txt: appears to be {name} without a byte order mark")
    assert f"iconv -f {name} -t UTF-8" in message


def test_other_line_separators_end_no_prompt(tmp_path: Path) -> None:
    """Unicode's, form feeds and vertical tabs stand inside of texts that were copied from documents."""
    assert read(tmp_path / "p.txt", "a\u2028b\u2029c\u0085d\x0ce\x0bf\n\x0cg\n".encode()) == [
        ("1", "a\u2028b\u2029c\u0085d\x0ce\x0bf"),
        ("2", "g"),
    ]


def test_lines_in_which_nothing_is_seen_are_passed_over(tmp_path: Path) -> None:
    lines = ["a", "\u200b", "\ufeff", "\u3164\u2800", "\u00a0", "\x1a", "b", "\ufeffc"]
    assert read(tmp_path / "p.txt", "\n".join(lines).encode()) == [("1", "a"), ("7", "b"), ("8", "c")]
    objects = ['{"prompt": "a"}', "\u200b", '\ufeff{"prompt": "b"}']
    assert read(tmp_path / "p.jsonl", "\n".join(objects).encode()) == [("1", "a"), ("3", "b")]
    for nothing in ("\u200b", "\ufeff", "\u3164", " "):
        message = refused(tmp_path / "p.jsonl", json.dumps({"prompt": nothing}).encode())
        assert message == "p.jsonl:1: `prompt` must be a non-empty string"


def test_lists_and_endings_in_capitals(tmp_path: Path) -> None:
    pretty = json.dumps([{"prompt": "a", "tag": "x"}, {"prompt": "b"}], indent=1).encode()
    for name in ("p.json", "P.JSON", "p.jsonl", "p.ndjson"):
        assert read(tmp_path / name, pretty) == [("2, entry 1", "a"), ("6, entry 2", "b")]
    assert read(tmp_path / "p.json", b'\xef\xbb\xbf["a", "b"]') == [("1, entry 1", "a"), ("1, entry 2", "b")]
    assert read(tmp_path / "p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n') == [("1", "a"), ("2", "b")]
    assert read(tmp_path / "P.TXT", b"[a") == [("1", "[a")]
    assert read(tmp_path / "P.JsonL", b'{"prompt": "a"}') == [("1", "a")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.json", b'[{"prompt": "a"},\n{"prompt": 3}]', "p.json:2, entry 2: `prompt` must be a non-empty string"),
        ("p.json", b'[{"prompt": "a"}\n{"prompt": "b"}]', "p.json:2: not JSON: expected , or ]"),
        ("p.json", b'[{"prompt": "a"},\n]', "p.json:2: not JSON: Expecting value"),
        ("p.json", b'[{"prompt": "a"}', "p.json:1: not JSON: expected , or ]"),
        ("p.json", b'["a"]\n["b"]', "p.json:1: not JSON: unexpected text"),
        ("p.json", b"[]", "p.json: has no prompts"),
        ("p.json", b"[3]", "p.json:1, entry 1: must be an object with a `prompt`, not 3"),
        ("p.json", b'{"data": [\n{"prompt": "a"}], "n": 1}', "p.json: .*if data holds the prompts, take"),
        ("p.json", b'{"prompt":\n["a", "b"]}', "p.json: `prompt` must be a non-empty string, not a list"),
        ("p.jsonl", b'{\n"prompt": "a"\n}', "p.jsonl:1: not JSON: .*jq -c"),
        ("p.jsonl", "{“prompt”: “a”}".encode(), "p.jsonl:1: not JSON: .*straight double quotes"),
        ("p.jsonl", b'{"prompt": "a \\ud83d"}', r"p.jsonl:1: `prompt` contains half .*U\+D83D, character 3"),
        ("p.jsonl", b'{"prompt": "\\ud83d"}', r"p.jsonl:1: `prompt` contains half .*U\+D83D, character 1"),
        ("p.jsonl", b'{"prompt": "a", "x": 1e400}', "p.jsonl:1: .*1e400 is out of range"),
        ("p.jsonl", b'{"prompt": "a", "x": [{"y": "\\udc00"}]}', r"p.jsonl:1: `x\[0\].y` contains half of a character"),
        ("p.jsonl", b'{"prompt": "a", "\\udc00": 1}', "p.jsonl:1: the key '.udc00' contains half of a character"),
        ("p.jsonl", b'{"prompt": "a\\u0000"}', "p.jsonl:1: `prompt` contains a null character"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "p.jsonl:1: .*duplicate key 'prompt'"),
        ("p.jsonl", b'{"prompt": "a", "x": -Infinity}', "p.jsonl:1: .*-Infinity is not a valid"),
        ("p.jsonl", b'{"id": 1, "Caption": "a"}', r"p.jsonl:1: .* \(the keys are id, Caption\); if Caption is meant"),
        ("p.jsonl", b'{"text": "a", "caption": "b"}', r"p.jsonl:1: .* \(the keys are text, caption\)$"),
        ("p.jsonl", b"{}", "p.jsonl:1: .*the object is empty"),
        ("p.txt", b'{"prompt": "a"}', "p.txt:1: is a JSON object; a file with such lines must end in .jsonl"),
        ("p.txt", "a\ncaf\u00e9 “x”".encode("cp1252"), r"p.txt:2: not UTF-8 \(byte 4 .*: 0xE9; .*'café “x”'"),
        ("p.txt", "红色的圆形".encode("gb18030"), "p.txt:1: not UTF-8 .*older encoding.*GB18030"),
        ("p.txt", "café".encode()[:-1], "p.txt:1: not UTF-8 .*ends in the middle of a character"),
        ("p.txt", "a …".encode()[:-1], "p.txt:1: not UTF-8 .*ends in the middle of a character$"),
        ("p.txt", "café".encode("latin-1"), "p.txt:1: not UTF-8 .*ends in .*; in Windows-1252 it reads 'café'"),
        ("p.txt", b"a\xed\xa0\xbdb", "p.txt:1: not UTF-8 .*half of a character"),
        ("p.txt", b"good\nwith a \0 byte\n", "p.txt:2: contains a null byte"),
        ("p.txt", b"\xff\xfea\x00\x00\x00", "p.txt:1: contains a null character"),
        ("p.txt", b"\xff\xfea\x00b", "p.txt:1: not UTF-16LE, despite its byte order mark"),
        ("p.txt", gzip.compress(b"a", mtime=0), "p.txt: is not a text file: it is a gzip file; unpack it"),
        ("p.txt", b"PK\x03\x04abc", "p.txt: is not a text file: it is a zip archive, or a spreadsheet"),
        ("p.jsonl.gz", b"x", "p.jsonl.gz: a prompt file must end in .*; unpack it first"),
        ("p.tsv", b"x", r"p.tsv: a prompt file must end in .*pandas.read_csv\('p.tsv', sep='.t'\).to_json\('p.jsonl'"),
        ("p.parquet", b"x", "p.parquet: a prompt file must end in .*pandas.read_parquet"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert re.match(expected, refused(tmp_path / name, content))


def test_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "x": NaN, "y": [{"z": NaN}]}')
    (record,) = read_prompts(path).values()
    expected: dict[str, Any] = {"x": None, "y": [{"z": None}]}
    assert record.metadata == expected


def test_pairs_of_escapes_are_one_character(tmp_path: Path) -> None:
    assert read(tmp_path / "p.jsonl", b'{"prompt": "\\ud83d\\ude00"}') == [("1", "😀")]


@pytest.mark.parametrize("content", [TEXT, "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS)])
def test_a_pipe_holds_what_it_begins_like(tmp_path: Path, content: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(content, encoding="utf-8"))
    writer.start()
    try:
        assert [record.prompt for record in read_prompts(pipe).values()] == PROMPTS
    finally:
        writer.join()


def test_paths_that_are_none() -> None:
    for path, expected in (("a\0.txt", r"a\\x00.txt: a path cannot contain a null"), ("a\ud83d.txt", "cannot be read")):
        with pytest.raises(ValueError, match=expected):
            read_prompts(Path(path))


def test_a_key_that_stands_twice_is_found_among_very_many(tmp_path: Path) -> None:
    """Comparing each with each would take an hour."""
    keys = ", ".join(f'"{i}": 0' for i in range(300_000))
    assert "duplicate key '299999'" in refused(tmp_path / "p.jsonl", b'{%s, "299999": 0}' % keys.encode())
