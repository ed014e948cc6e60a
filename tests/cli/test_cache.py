"""`dgpo cache`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.storage.embeddings import EmbeddingFiles

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default directory, with embeddings of two encoders."""
    monkeypatch.setenv("DGPO_CACHE", str(tmp_path))
    for identity, count in (("one", 2), ("two", 1)):
        info = {"backbone": "sd3", "checkpoint": f"some/{identity}", "dtype": "bfloat16", "device": "cpu"}
        files = EmbeddingFiles(tmp_path / "embeddings", 10**6, identity, info)
        for i in range(count):
            files.write(f"{i}", b"x" * 5000)
    return tmp_path / "embeddings"


def test_encoders_are_listed_and_deleted(dgpo: Run, place: Path) -> None:
    found = dgpo("cache", "list")
    assert found.code == 0
    head, *lines = found.out.splitlines()
    assert head == f"{place}: 0.000 GB"
    assert sorted(line.split("  ")[-1] for line in lines) == [f"sd3 some/{i}, bfloat16, cpu" for i in ("one", "two")]
    data = json.loads(dgpo("cache", "list", "--json").out)
    assert {one["checkpoint"]: (one["rows"], one["bytes"]) for one in data["encoders"]} == {
        "some/one": (2, 2 * 8192), "some/two": (1, 8192),
    }  # fmt: skip
    name = next(one["encoder"] for one in data["encoders"] if one["checkpoint"] == "some/one")
    assert dgpo("cache", "clear", name[:12]).out == f"{place}: 2 embeddings deleted, 0.000 GB\n"
    assert [one["checkpoint"] for one in json.loads(dgpo("cache", "list", "--json").out)["encoders"]] == ["some/two"]
    assert dgpo("cache", "clear", "--directory", place).out == f"{place}: 1 embeddings deleted, 0.000 GB\n"
    assert dgpo("cache", "list").out == f"{place}: 0.000 GB\n"


@pytest.mark.parametrize("name", ["zz", ""])
def test_an_encoder_that_is_not_there(dgpo: Run, place: Path, name: str) -> None:
    found = dgpo("cache", "clear", name)
    assert found.code == 2
    assert f"{place}: there are no embeddings of an encoder {name!r} (known: " in found.err
    assert len(list(place.glob("*/*.safetensors"))) == 3


def test_a_directory_that_is_not_there(dgpo: Run, tmp_path: Path) -> None:
    assert dgpo("cache", "list", "--directory", tmp_path / "none").out == f"{tmp_path / 'none'}: 0.000 GB\n"
    assert not (tmp_path / "none").exists()
