"""Files of a run that somebody or something has replaced: said in words, and never waited for."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dgpo_core.system.reading import DEEPEST, parse_json, read_file, read_json, split_lines


@pytest.mark.parametrize("text", ["{}", "[1, 2.5, null, true]", '"\\ud83d"', '{"a": [{"b": "ä"}]}'])
def test_what_is_json_is_read(text: str) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "[-Infinity]", "9" * 5000, b"\xff", b"\xef\xbb\xbf{}", "[" * 100_000,
     "[" * 100_000 + "]" * 100_000, '{"a":' * 900 + "1" + "}" * 900],
)  # fmt: skip
def test_what_is_none_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_depth_is_bounded_and_brackets_within_texts_are_none() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    assert parse_json(json.dumps(["[" * 200, {"{" * 200: 1}]))
    assert parse_json(json.dumps([[i] for i in range(200)]))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "device").symlink_to("/dev/full")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(tmp_path / "socket"))
    expected = {
        "directory": "is a directory, not a file", "fifo": "is a FIFO", "link": "is a FIFO", "device": "is a device",
        "loop": "Too many levels", "socket": "is a socket", "nothing": "No such file",
    }  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(OSError, match=message):
            read_file(tmp_path / name)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="is larger than 64 MiB"):
        read_json(tmp_path / "large")


def test_lines_that_say_nothing_are_numbered() -> None:
    lines = [
        b'{"iteration": 1, "seconds": 2}', b"", b'{"iteration": true, "seconds": 2}', b'{"iteration": 1}',
        b'{"iteration": 1, "seconds": 1e999}', b'{"iteration": 1, "seconds": true}', b"[1]", b"\xff",
        b'{"iteration": 1' + b"0" * 30 + b', "seconds": 1}', b"[" * 5000, b'{"iteration": 2, "seconds": 0.5}',
    ]  # fmt: skip
    sound, broken = split_lines(b"\n".join([*lines, b'{"iteration": 3, "seconds": 1}']), {"seconds": (int, float)})
    assert [record["iteration"] for _, record in sound] == [1, 2]
    assert [line.encode() for line, _ in sound] == [lines[0], lines[-1]]
    assert broken == list(range(2, 11))
