"""Where checkpoints are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo_core.errors import UserError
from dgpo_core.weights import resolve_checkpoint


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `some_weights` with one directory of weights."""
    root = tmp_path / "site" / "some_weights"
    (root / "models" / "small").mkdir(parents=True)
    (root / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(root.parent))
    return root


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str((tmp_path / "owner" / "model").resolve())
    # A directory wins over a repository of the same name.
    for text in (expected, "owner/model", "./owner/model/", "~/owner/model"):
        assert resolve_checkpoint(text) == expected


@pytest.mark.parametrize("text", ["stabilityai/stable-diffusion-3.5-medium", "gpt2", "a-b/c_d.e"])
def test_hub_repositories(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(text) == text


@pytest.mark.parametrize("text", ["./nothing", "/nothing/here", "runs/a/checkpoint", "~/nothing-here", "a b"])
def test_paths_that_do_not_exist(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no directory .* \(the nearest that exists is /.*\); allowed is"):
        resolve_checkpoint(text)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(UserError, match="is a file; allowed is a directory"):
        resolve_checkpoint(str(path))


def test_weights_in_a_package(package: Path) -> None:
    assert resolve_checkpoint("package:some_weights/models/small") == str(package / "models" / "small")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("package:", "is incomplete; write package:NAME/path"),
        ("package:some_weights", "is incomplete"),
        ("package:some_weights/models/large", "directories beside it: small"),
        ("package:some_weights/none/large", "directories beside it: none"),
        ("package:no_such_weights/x", "no_such_weights, which is not installed .* pip install no-such-weights"),
        ("package:..weights/x", "not installed or not importable"),
    ],
)
def test_packages_that_do_not_have_it(package: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"backbone.checkpoint: {text}.*{problem}"):
        resolve_checkpoint(text)
