"""`dgpo plugins new`: what it writes is tried in tests/integration; here is what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgpo_geneval.plugin
from dgpo_core.hookspecs import KINDS, Kind, hookimpl
from dgpo_core.plugins.registry import Registry

Run = Callable[..., Any]


@pytest.mark.parametrize("kind", [*KINDS, "detector"])
def test_a_whole_distribution_is_written(dgpo: Run, known: Registry, kind: str, tmp_path: Path) -> None:
    known.register(dgpo_geneval.plugin, distribution="dgpo-geneval")  # it brings a kind with a template
    done = dgpo("plugins", "new", kind, "my-part", "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    directory = tmp_path / "dgpo-my-part"
    written = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    package = {
        f"src/dgpo_my_part/{name}" for name in ("__init__.py", "py.typed", "plugin.py", "options.py", f"{kind}.py")
    }
    tests = {f"tests/{name}" for name in ("conftest.py", "test_contract.py", f"test_{kind}.py")}
    assert written == {"pyproject.toml", "README.md", ".gitignore"} | package | tests
    assert all("{{" not in (directory / path).read_text() for path in written)
    assert done.out.splitlines()[0] == f"wrote {directory}/"
    assert done.out.splitlines()[-4:] == [
        "next:",
        f"  pip install -e '{directory}[test]'",
        f"  dgpo plugins check my-part --kind {kind}",
        f"  python -m pytest {directory}",
    ]


class Bare:
    """Brings a kind without a template."""

    @hookimpl
    def dgpo_kinds(self) -> list[Kind]:
        return [Kind("bare", "dgpo_bares", ("nowhere:X",))]


def test_a_kind_that_is_not_installed_or_has_no_template(dgpo: Run, known: Registry) -> None:
    done = dgpo("plugins", "new", "detector", "mine")
    assert (done.code, done.out) == (2, "")
    assert "unknown kind; it comes with dgpo-geneval; in a checkout of dgpo: pip install -e plugins/" in done.err
    known.register(Bare(), distribution="bare")
    assert (
        dgpo("plugins", "new", "bare", "mine").err
        == "KIND bare: the plugin that defines this kind has no template for it\n"
    )


def test_a_backbone_over_dgpo_diffusers(dgpo: Run, tmp_path: Path) -> None:
    """It depends on it, and has a checkpoint to be checked with."""
    done = dgpo("plugins", "new", "backbone", "my-flux", "--over", "diffusers", "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    directory = tmp_path / "dgpo-my-flux"
    assert '"dgpo-diffusers>=0.2"' in (directory / "pyproject.toml").read_text()
    assert "(DiffusersBackbone)" in (directory / "src/dgpo_my_flux/backbone.py").read_text()
    assert 'tiny="dgpo_my_flux.testing:make_tiny"' in (directory / "src/dgpo_my_flux/plugin.py").read_text()
    assert "check my-flux --checkpoint tiny" in (directory / "README.md").read_text()
    assert done.out.splitlines()[-4:] == [
        f"  pip install -e '{directory}[test]'",
        "  dgpo plugins tiny my-flux tiny",
        "  dgpo plugins check my-flux --kind backbone --checkpoint tiny",
        f"  python -m pytest {directory}",
    ]


def test_the_working_directory_is_where_it_goes(dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dgpo("plugins", "new", "reward", "light").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["dgpo-light"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("My Reward!", "my-reward"),
        ("brightness_2", "brightness-2"),
        ("dgpo-light", "light"),
        ("3d", "d"),
        ("a--b", "a-b"),
        ("-a", "a"),
        ("a-", "a"),
        ("a/../../b", "a-b"),
        ("größe", "groe"),
        ("n" * 31, "n" * 30),
        ("light\n", "light"),
    ],
)
def test_a_name_that_makes_no_package(dgpo: Run, name: str, nearest: str, tmp_path: Path) -> None:
    arguments = ["--output", tmp_path, "--", "reward", name]
    done = dgpo("plugins", "new", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"NAME {name!r}: must consist of lower-case letters, digits and single hyphens")
    assert done.err.rstrip().endswith(f"; the nearest valid name is {nearest}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rewards", "x"], "KIND rewards: unknown kind; did you mean reward? (kinds: backbone, sampler, "),
        (
            ["backbone", "x", "--over", "diffuser"],
            "--over diffuser: unknown base; did you mean diffusers? (bases: diffusers)\n",
        ),
        (
            ["reward", "x", "--over", "diffusers"],
            "--over diffusers: is a base for a backbone, not for a reward; remove --over\n",
        ),
        (["reward", "???"], "NAME '???': must consist of lower-case letters, digits"),
        (["reward", "toy"], "NAME toy: is reserved for the test kit; choose another name, such as my-toy"),
        (["reward", "brightness"], "NAME brightness: toy already declares the reward brightness"),
        (["reward", "pickscore"], "NAME pickscore: dgpo-pickscore already declares the reward pickscore"),
        (["sampler", "sd3"], "NAME sd3: dgpo-sd3 (package dgpo_sd3) already exists; choose another name, such as"),
        (["sampler", "core"], "NAME core: dgpo-core (package dgpo_core) already exists"),
    ],
)
def test_what_is_refused(dgpo: Run, arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = dgpo("plugins", "new", *arguments, "--output", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_free(dgpo: Run, tmp_path: Path) -> None:
    assert dgpo("plugins", "new", "weighting", "brightness", "--output", tmp_path).code == 0


@pytest.mark.parametrize("there", ["directory", "file", "link"])
def test_nothing_is_overwritten(dgpo: Run, there: str, tmp_path: Path) -> None:
    target = tmp_path / "dgpo-light"
    if there == "directory":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    done = dgpo("plugins", "new", "reward", "light", "--output", tmp_path)
    assert done.code == 2
    assert done.err == f"{target}: already exists; nothing was written. Choose another NAME or --output\n"
    assert [path.name for path in tmp_path.iterdir()] == ["dgpo-light"]
    assert there != "file" or target.read_text() == "mine"


def test_an_output_that_is_not_there(dgpo: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "no", tmp_path / "file"):
        done = dgpo("plugins", "new", "reward", "light", "--output", output)
        assert (done.code, done.err) == (2, f"--output {output}: no such directory\n")


def test_what_cannot_be_written_leaves_nothing(dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the disk is full half way."""
    written = Path.write_text

    def full(path: Path, *arguments: Any, **keywords: Any) -> int:
        if path.name == "reward.py":
            raise OSError(28, "No space left on device")
        return written(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    done = dgpo("plugins", "new", "reward", "light", "--output", tmp_path)
    assert (done.code, done.err) == (2, f"cannot write {tmp_path / 'dgpo-light'}: No space left on device\n")
    assert list(tmp_path.iterdir()) == []
