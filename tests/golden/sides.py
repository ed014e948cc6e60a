"""The two sides of a comparison: a tree of sources, and an environment in which its packages and plugins are found.

The interpreter and the libraries are those of the environment that compares; dgpo and its plugins are a side's own. So
that a distribution which only one side has, or which the environment has installed from elsewhere, is not seen on the
other side, each side gets metadata made from its own pyproject.toml files, in a directory in front of everything.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Either", "Side", "check_out", "root"]

root = Path(__file__).parents[2]
"""The working tree."""

GROUP = "dgpo"
"""Of plugins' entry points."""


@dataclass(frozen=True)
class Either:
    """What stands in a run definition and is another one for a tree of another contract: `then` if the tree's `file`
    has `text`, else `otherwise`. why: the reason, with the subject of the commit."""

    file: str
    text: str
    then: Any
    otherwise: Any
    why: str


@dataclass(frozen=True)
class Side:
    """A tree, and a directory for whatever is made with it. label: before or after."""

    label: str
    tree: Path
    directory: Path

    @property
    def names(self) -> Mapping[str, str]:
        """Paths that stand for the same thing on both sides."""
        return {str(self.directory): "<side>", str(self.tree): "<tree>"}

    def resolved(self, value: Any) -> Any:
        """Data of a run definition, for this tree."""
        if isinstance(value, Either):
            file = self.tree / value.file
            has = file.is_file() and value.text in file.read_text()
            return self.resolved(value.then if has else value.otherwise)
        if isinstance(value, dict):
            return {key: self.resolved(inner) for key, inner in value.items()}
        return [self.resolved(inner) for inner in value] if isinstance(value, list | tuple) else value

    def environment(self, *more: Path) -> dict[str, str]:
        """Variables for processes of this side, with further projects `more`; its metadata is written."""
        projects = [self.tree, *sorted(p.parent for p in (self.tree / "plugins").glob("*/pyproject.toml")), *more]
        metadata = self.directory / "metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        path, here = [metadata], set()
        for project in projects:
            said = tomllib.loads((project / "pyproject.toml").read_text())
            path += [project / part for part in _sources(said)]
            here.add(_normal(said["project"]["name"]))
            _describe(metadata, said["project"])
        for distribution in importlib.metadata.distributions():
            name = distribution.metadata["Name"]
            if _normal(name) not in here and any(e.group == GROUP for e in distribution.entry_points):
                _describe(metadata, {"name": name, "version": "0"})  # hides it: the first one on the path counts
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DGPO_", "PYTHON"))},
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }


def _sources(said: Mapping[str, Any]) -> list[str]:
    """Directories of a project from which its packages are imported."""
    found: list[str] = said.get("tool", {}).get("hatch", {}).get("build", {}).get("dev-mode-dirs", ["src"])
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _describe(metadata: Path, project: Mapping[str, Any]) -> None:
    """What an installed distribution says of itself."""
    name, version = project["name"], project["version"]
    directory = metadata / f"{_normal(name)}-{version}.dist-info"
    directory.mkdir(exist_ok=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (directory / "entry_points.txt").write_text("\n".join([*lines, ""]))


def check_out(commit: str, tree: Path) -> str:
    """Write the files of a commit of this repository into `tree`; returns its hash and subject. Raises ValueError if
    there is no such commit."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True).stdout

    try:
        reported = git("log", "-1", "--format=%h %s", f"{commit}^{{commit}}", "--").decode().strip()
        files = git("archive", "--format=tar", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{commit}: {error.stderr.decode().strip()}") from None
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(tree, filter="data")
    return reported
