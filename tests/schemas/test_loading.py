"""Reading YAML: what is refused and where, what values mean, and overrides."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from dgpo_core.config.overrides import apply_overrides
from dgpo_schemas.base import Int, StrictModel
from dgpo_schemas.loading import MAX_BYTES, Document, load_yaml, validate
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.yaml_text import dump_yaml


def load(tmp_path: Path, text: str | bytes) -> Document:
    """The text as a file."""
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(path)


def complaints(tmp_path: Path, text: str | bytes) -> list[str]:
    """Problems without the directory."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"run.yaml: the file is empty"),
        ("# nothing\n---\n", r"run.yaml: the file is empty"),
        ("- a\n- b\n", r"run.yaml:1: must be a mapping of sections .*not a list"),
        ("\n\njust text\n", r"run.yaml:3: must be a mapping of sections .*not 'just text'"),
        (b"run: 1\nname: \xff\xfe\n", r"run.yaml:2: not UTF-8 \(byte 7 of the line\)"),
        ("a: 1\nb: \x07\n", r"run.yaml:2: not YAML: the character U\+0007"),
        ("a: 1\nb: [1, 2\nc: 3\n", r"run.yaml:3: not YAML: .*\(column 2\)"),
        ("a:\n\tb: 1\n", r"run.yaml:2: not YAML: .*indent with spaces, not tabs"),
        ("a: b: c\n", r"run.yaml:1: not YAML: mapping values are not allowed .*\(column 5\); quote a string"),
        ('a: "x\n', r"run.yaml:2: not YAML: .*end of stream"),
        ("a: 1\n---\nb: 2\n", r"run.yaml:2: not YAML: .*document"),
        ("a: *nobody\n", r"run.yaml:1: not YAML: found undefined alias"),
        ('a: "\\UFFFFFFFF"\n', r"run.yaml: not YAML: "),
        ("a: 1\nb: 2\na: 3\n", r"run.yaml:3: a: duplicate key, first used in line 1"),
        ("a:\n  b: 1\n\n  b: 2\n", r"run.yaml:4: a.b: duplicate key, first used in line 2"),
        ("a: !!python/object:os.system x\n", r"run.yaml:1: a: the tag !!python/object:os.system is not allowed"),
        ("a: !!python/name:os.system\n", r"run.yaml:1: a: the tag !!python/name:os.system is not allowed"),
        ("a: !mine {x: 1}\n", r"run.yaml:1: a: the tag !mine is not allowed"),
        ("a: !!set {x, y}\n", r"run.yaml:1: a: the tag !!set is not allowed"),
        ("a: !!int x\n", r"run.yaml:1: a: 'x' is not a valid int"),
        ("a: !!bool maybe\n", r"run.yaml:1: a: 'maybe' is not a valid bool"),
        ("a: " + "9" * 5000, r"run.yaml:1: a: '9+\.\.\. \(5002 characters\) is not a valid int"),
        ("? [1, 2]\n: x\n", r"run.yaml:1: a key must be a non-empty string"),
        ("'': x\n", r"run.yaml:1: a key must be a non-empty string"),
        ("a: &a [*a]\n", r"run.yaml:1: an alias refers to a node that contains it"),
        ("a: &a\n  <<: *a\n", r"run.yaml:1: an alias refers to a node that contains it"),
        ("a: {<<: 3}\n", r"run.yaml:1: a: `<<` can merge only mappings"),
        ("a: " + "[" * 5000, r"run.yaml:1: not YAML: nested deeper than 40 levels"),
        ("a: " + "{b: " * 100 + "1" + "}" * 100, r"run.yaml:1: not YAML: nested deeper than 40 levels"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (line,) = complaints(tmp_path, text)
    assert re.match(expected, line), line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: 1\nb: x\0y\n", r"run.yaml:2: contains a null byte \(byte 5 of the line\)"),
        ('a:\n  b: "x\\0y"\n', r"run.yaml:2: a.b: 'x.x00y' contains a null character.*\(column 6\)"),
        (
            'a: "x\\ud83d"\n',
            r"run.yaml:1: a: .* contains half of a character \(the lone surrogate U\+D83D.*\(column 4\)",
        ),
        ('"a\\udc00": 1\n', r"run.yaml:1: the key .* contains half of a character"),
        ("a:\n\u00a0 b: 1\n", r"run.yaml:2: the key .* contains U\+00A0 \(no-break space\).*\(column 1\)"),
        (
            "a:\n  b:\u00a0x\n",
            r"run.yaml:2: a: .* contains U\+00A0 .*plain space instead, or quote the text \(column 3\)",
        ),
        ("a: \u00a0x\n", r"run.yaml:1: a: .* contains U\+00A0 .*\(column 4\)"),
        ("a: 3\u200b\n", r"run.yaml:1: a: .* contains U\+200B \(zero-width space\)"),
        ("a: 1\n\ufeffb: 2\n", r"run.yaml:2: the key .* contains U\+FEFF \(byte order mark\)"),
        ("a:\u3000x\n", r"run.yaml:1: .* contains U\+3000 \(ideographic space\)"),
        ("“a”: 1\n", r"run.yaml:1: the key .* is in typographic quotes \(“ is U\+201C\)"),
        ("a: ‘x’\n", r"run.yaml:1: a: .* is in typographic quotes .*\(column 4\)"),
        ("a：x\n", r"run.yaml:1: must be a mapping .*line 1, column 2, contains U\+FF1A \(full-width colon\)"),
        ("a:\n  b：1\n  c: 2\n", r"run.yaml:3: not YAML: .*line 2, column 4, contains U\+FF1A"),
        ("a:1\n", r"run.yaml:1: must be a mapping .*put a space after each colon"),
        ("a: 1\t\n", r"run.yaml:1: not YAML: .*use a space, not a tab"),
        ("a: @x\n", r"run.yaml:1: not YAML: .*quote a string that begins like this"),
        ("a: 1\nb: x\x9by\n", r"run.yaml:2: not YAML: the character U\+009B is not allowed \(column 5\)"),
        ("a: 1\r\nb: x\u2028c: 3\n", r"run.yaml:2: not YAML: the separator U\+2028 is not allowed \(column 5\)"),
        ("a: 0x" + "f" * 5000, r"run.yaml:1: a: '0xf+\.\.\. .* is not a valid int"),
        ("a: 1e400\n", r"run.yaml:1: a: '1e400' is out of range"),
        ("a: 1\n".encode("utf-16-le"), r"run.yaml: appears to be UTF-16LE without a byte order mark"),
        (b"\x1f\x8babc", r"run.yaml: is not a text file: it is a gzip file"),
    ],
)
def test_characters_that_are_none_of_yaml(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (line,) = complaints(tmp_path, text)
    assert re.match(expected, line), line


def test_characters_that_are_meant(tmp_path: Path) -> None:
    """In quotes everything may stand, and what languages are written with stands without quotes too."""
    text = 'a: "\u00a0x\u200b"\n"b\u00a0": \'“x”\'\nc: enseigne\u00a0; « x »\nd: می\u200cخواهم\ne: it’s\n'
    assert load(tmp_path, text).data == {
        "a": "\u00a0x\u200b", "b\u00a0": "“x”", "c": "enseigne\u00a0; « x »", "d": "می\u200cخواهم", "e": "it’s",
    }  # fmt: skip
    assert load(tmp_path, 'a: "\\ud83d\\ude00"\n').data == {"a": "😀"}
    assert load(tmp_path, "a: 1\n".encode("utf-16")).data == {"a": 1}
    assert load(tmp_path, '{\n\t"a": {\n\t\t"b":\t1\n\t}\n}\n').data == {"a": {"b": 1}}


def test_settings_are_read_in_the_same_way() -> None:
    document = Document("run.yaml", {"a": 1})
    for setting, expected in (
        ('a="x\\0"', "null character"),
        ("a=“x”", "typographic quotes"),
        ("a=x\udcff", "the byte 0xFF at character 4"),
        ("a=3\u200b", r"U\+200B"),
    ):
        with pytest.raises(ConfigError, match=expected):
            apply_overrides(document, [setting])


@pytest.mark.parametrize(
    "line",
    ["b{i}: {{<<: [*b{j}, *b{j}], k{i}: 1}}", "b{i}: {{<<: *b{j}, k{i}: 1}}", "b{i}: [*b{j}, *b{j}]"],
)
def test_merges_that_multiply_are_refused(tmp_path: Path, line: str) -> None:
    lines = [line.format(i=i, j=i - 1).replace(f"b{i}:", f"b{i}: &b{i}", 1) for i in range(1, 200)]
    (found,) = complaints(tmp_path, "\n".join(["b0: &b0 {k: 1}", *lines]))
    assert re.search("more than 20000 values after|deeper than 40 levels after", found)


def test_many_values_are_refused_before_they_are_all_read(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, "a: [" + "x," * 21_000 + "]")
    assert line.startswith("run.yaml:1: not YAML: more than 20000 values")


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (line,) = complaints(tmp_path, "\n".join(lines))
    assert "more than 20000 values after expanding aliases" in line


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, b"# " + b"x" * MAX_BYTES)
    assert line == "run.yaml: is larger than 256 KiB, the limit for a YAML file"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r": is a directory, not a file"):
        load_yaml(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read: .*null"):
        load_yaml("a\0b")
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match=r"loop.yaml: cannot be read: Too many levels of symbolic links"):
        load_yaml(loop)


def test_several_duplicates_are_all_reported(tmp_path: Path) -> None:
    assert complaints(tmp_path, "a: 1\na: 2\nb: {c: 1, c: 2}\nb: 3\n") == [
        "run.yaml:2: a: duplicate key, first used in line 1",
        "run.yaml:3: b.c: duplicate key, first used in line 3",
        "run.yaml:4: b: duplicate key, first used in line 3",
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("off", "off"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("3e-4", 3e-4), ("1E3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("1_000", "1_000"),
        ("010", 10), ("+7", 7), ("0x1F", 31), ("0o17", 15), ("1:30", "1:30"),
        ("2026-11-24", "2026-11-24"), (".inf", math.inf), ("-.INF", -math.inf), ("'12'", "12"), ("!!str 12", "12"),
        ("<<", "<<"), ("shift(0.3)", "shift(0.3)"), ("é", "é"), ("[1, [2]]", [1, [2]]), ("{b: {}}", {"b": {}}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)  # fmt: skip
def test_what_values_mean(tmp_path: Path, written: str, expected: Any) -> None:
    found = load(tmp_path, f"a: {written}").data["a"]
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_texts(tmp_path: Path) -> None:
    assert load(tmp_path, "on: 1\n12: 2\nnull: 3\n3.5: 4").data == {"on": 1, "12": 2, "null": 3, "3.5": 4}


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    document = load(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert document.data == {"a": 1, "b": "x"}
    assert document.position(("b",)).text.endswith("run.yaml:2")


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = "base: &base\n  x: 1\n  y: [1]\nmore: &more {z: 9, x: 8}\nmine:\n  <<: [*base, *more]\n  y: 5\nsame: *base\n"
    document = load(tmp_path, text)
    # PyYAML's own loader is the reference for merging.
    assert document.data == yaml.safe_load(text)
    assert document.data["mine"] == {"x": 1, "y": 5, "z": 9}
    places = {key: document.position(("mine", key)).text.rpartition(":")[2] for key in "xyz"}
    assert places == {"x": "2", "y": "7", "z": "4"}


def test_positions_are_lines(tmp_path: Path) -> None:
    document = load(tmp_path, "run:\n  name: x\n\nrewards:\n  - use: a\n    weight: 1\n  - use: b\n")

    def line(*path: str | int) -> str:
        return document.position(path).text.rpartition("run.yaml")[2]

    assert line("run") == ":1"
    assert line("run", "name") == ":2"
    assert line("rewards", 0, "weight") == ":6"
    assert line("rewards", 1) == ":7"
    assert line("rewards", 1, "options", "x") == ":7"  # the nearest section around it
    assert line("nowhere") == ""


valid = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
"""Zero characters are refused."""
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(valid),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(valid, min_size=1), inner, max_size=4),
    max_leaves=20,
)


texts = st.text(valid) | st.from_regex(r"[-+.]?[0-9][0-9.eExo+-]{0,4}", fullmatch=True)  # many look like numbers


@given(st.dictionaries(st.text(valid, min_size=1), json_like | texts, min_size=1, max_size=5))
@example({"“a”": "“x”", "\u00a0b": "c:\u00a0", "\u200b": ["x\ufeff"]})
@example({"name": "3e-4", "other": "0o7", "third": "1E5", "on": "yes", "date": "2025-01-01", "time": "1:30"})
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    assert load_yaml(path).data == data
    # Also by programs that know YAML 1.1 alone.
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == data


class Small(StrictModel):
    """A section."""

    steps: Int = Field(ge=1, description="Steps.")
    name: str = Field(description="Name.")


def test_a_document_becomes_a_model(tmp_path: Path) -> None:
    assert validate(Small, load(tmp_path, "steps: 3\nname: x")) == Small(steps=3, name="x")


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    document = apply_overrides(load(tmp_path, "\nstpes: 3\n"), ["name=3"])
    with pytest.raises(ConfigError) as caught:
        validate(Small, document)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "run.yaml: steps: is missing (Steps)",
        "run.yaml:2: stpes: unknown key; did you mean steps?",
        "--set name=3: must be a string, not 3 (put it in quotes)",
    ]


# -- overrides ----------------------------------------------------------------------------------------------------


def changed(*overrides: str) -> dict[str, Any]:
    """A small document after overrides."""
    data = {"run": {"name": "x"}, "rewards": [{"use": "a"}], "sampler": "euler", "train": "p.txt", "none": None, "n": 1}
    return apply_overrides(Document("run.yaml", data), overrides).data


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("run.name=y", ("run", "name"), "y"),
        ("run.name=", ("run", "name"), None),
        ("run.name=a=b", ("run", "name"), "a=b"),
        ("run.seed=3e-4", ("run", "seed"), 3e-4),
        ("new.deep.key=[1, 2]", ("new", "deep", "key"), [1, 2]),
        ("none.key=1", ("none", "key"), 1),
        ("rewards.0.weight=2", ("rewards", 0, "weight"), 2),
        ("rewards.0={use: b}", ("rewards", 0), {"use": "b"}),
        ("rewards.1.use=b", ("rewards", 1, "use"), "b"),
        ("rewards.1=b", ("rewards", 1), "b"),
        ("sampler.options.order=2", ("sampler",), {"use": "euler", "options": {"order": 2}}),
        ("sampler.use=heun", ("sampler",), {"use": "heun"}),
        ("train.limit=5", ("train",), {"file": "p.txt", "limit": 5}),
        (" run.name =z", ("run", "name"), "z"),
    ],
)
def test_overrides(override: str, path: tuple[str | int, ...], expected: Any) -> None:
    here: Any = changed(override)
    for part in path:
        here = here[part]
    assert here == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.name", "must be KEY=VALUE, such as optimizer.learning_rate=1e-4"),
        ("=3", "must be KEY=VALUE"),
        ("run..name=3", "must be KEY=VALUE"),
        ("", "must be KEY=VALUE"),
        ("n.x=3", "n is 1; it has no key 'x'"),
        ("sampler.steps=3", "sampler is 'euler'; it has no key 'steps'"),
        ("rewards.2.use=c", "rewards is a list; '2' is not one of its indices (0 to 0; 1 appends)"),
        ("rewards.first=c", "rewards is a list; 'first' is not one of its indices"),
        ("rewards.-1=c", "'-1' is not one of its indices"),
        ("rewards.²=c", "'²' is not one of its indices"),
        ("a=[1", "not YAML: "),
        ("a={b: 1, b: 2}", "duplicate key"),
        ("a=!!python/name:os x", "not allowed"),
    ],
)
def test_overrides_that_cannot_be_applied(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(override)
    assert str(caught.value).startswith(f"--set {override}: ")
    assert expected in str(caught.value)


def test_all_wrong_overrides_are_reported_and_nothing_is_changed() -> None:
    document = Document("run.yaml", {"run": {"name": "x"}})
    with pytest.raises(ConfigError) as caught:
        apply_overrides(document, ["run.name=y", "oops", "run.name.x=1"])
    assert [p.where for p in caught.value.problems] == ["--set oops", "--set run.name.x=1"]
    assert document.data == {"run": {"name": "x"}}


def test_the_last_override_wins_and_gives_the_place() -> None:
    document = apply_overrides(Document("run.yaml", {"a": {"b": 1}}), ["a.b=2", "a.b=3", "a.c={d: 1}"])
    assert document.data == {"a": {"b": 3, "c": {"d": 1}}}
    assert document.position(("a", "b")).text == "--set a.b=3"
    assert document.position(("a", "c", "d")).text == "--set a.c={d: 1}"
