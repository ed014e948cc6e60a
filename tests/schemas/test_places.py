"""Paths that people write: home directories, and which texts are paths at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from dgpo_schemas.base import Options
from dgpo_schemas.places import (
    FileOrTag,
    PathOrName,
    PathText,
    Place,
    Program,
    SchemedPath,
    absolute,
    expand_home,
    places,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_home(home: Path) -> None:
    assert expand_home("~") == str(home)
    assert expand_home("~/a/b") == f"{home}/a/b"
    assert expand_home("local-dir:~/clip") == f"local-dir:{home}/clip"
    assert expand_home("~root/a") == f"{Path('~root').expanduser()}/a"
    for text in ("a/~", "./~/a", "owner/name", "package:a/b", "", "/a"):
        assert expand_home(text) == text


def test_no_path_holds_a_zero_character() -> None:
    for text in ("a\0", "~/a\0b", "local-dir:a\0"):
        with pytest.raises(ValueError, match=r"x00.*: a path cannot contain a null character"):
            expand_home(text)


def test_a_home_that_is_not_known() -> None:
    with pytest.raises(
        ValueError, match=r"^'~no-such/a': the home directory of no-such is not known; .*, write \./~no-such/a$"
    ):
        expand_home("~no-such/a")


@pytest.mark.parametrize(
    ("text", "known_by", "expected"),
    [
        ("runs", "always", "{here}/runs"),
        ("/runs", "always", "/runs"),
        ("there/sub", "being there", "{here}/there/sub"),
        ("there", "being there", "{here}/there"),
        ("owner/name", "being there", "owner/name"),
        ("package:dgpo_miniature/checkpoint", "being there", "package:dgpo_miniature/checkpoint"),
        ("weights.pt", "file", "{here}/weights.pt"),
        ("there", "file", "there"),
        ("weights.pt", "slash", "weights.pt"),
        ("./weights.pt", "slash", "{here}/weights.pt"),
        ("there", "scheme", "there"),
        ("local-dir:there", "scheme", "local-dir:{here}/there"),
        ("there/../there/sub", "always", "{here}/there/sub"),
        ("link/../weights.pt", "always", "{here}/elsewhere/weights.pt"),
        ("link", "always", "{here}/link"),
    ],
)
def test_absolute(text: str, known_by: Any, expected: str, tmp_path: Path) -> None:
    """Links stay, but where one is gone up from, it is followed as the system does it."""
    (tmp_path / "there" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "weights.pt").touch()
    found = absolute(text, Place(known_by))
    assert found == expected.format(here=tmp_path)
    assert absolute(found, Place(known_by)) == found


class Inner(Options):
    """One level down."""

    weights: FileOrTag = "openai"
    title: str = "~"


class Outer(Options):
    """Every way to declare a path."""

    directory: PathText = Field(default="runs", min_length=1)
    model: PathOrName | None = None
    words: list[str] | PathText | None = None
    several: list[PathText] = Field(default_factory=list)
    python: Program | None = None
    clip: SchemedPath = "ViT"
    inner: Inner | None = None
    inners: list[Inner] = Field(default_factory=list)
    plain: str = "~/no path"


def test_which_fields_hold_paths(home: Path) -> None:
    made = Outer(
        directory="~/a", model="~/b", words="~/c", several=["d", "~/e"], python="~/f", clip="local-dir:~/g",
        inner=Inner(weights="~/h"), inners=[Inner(), Inner()],
    )  # fmt: skip
    data = made.model_dump()
    found = {".".join(map(str, path)): place.known_by for path, place in places(made, data)}
    assert found == {
        "directory": "always", "model": "being there", "words": "always", "several.0": "always", "several.1": "always",
        "python": "slash", "clip": "scheme", "inner.weights": "file", "inners.0.weights": "file",
        "inners.1.weights": "file",
    }  # fmt: skip
    assert (made.directory, made.words, made.several, made.clip) == (
        f"{home}/a", f"{home}/c", ["d", f"{home}/e"], f"local-dir:{home}/g",
    )  # fmt: skip
    assert made.plain == "~/no path"
    listed = Outer(words=["~", "no path"])
    assert [path for path, _ in places(listed, listed.model_dump()) if path[0] == "words"] == []


def test_a_home_that_is_not_known_is_a_mistake_of_the_field() -> None:
    with pytest.raises(ValidationError, match="the home directory of nobody-of-this-name is not known"):
        Outer(directory="~nobody-of-this-name/a")
