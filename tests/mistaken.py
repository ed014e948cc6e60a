"""A sound run file in a working directory, and what mistakes in it must do: for the tests of bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.plugins.registry import Registry

Run = Callable[..., Any]

TEXT = """\
run: {name: toy, output: runs, iterations: 2, device: cpu, threads: 1}
backbone: {use: toy, checkpoint: toy, lora: {rank: 4, alpha: 4}}
prompts: {train: {use: toy}, heldout: {use: toy}}
rollout:
  steps: 3
  shift: 1.0
  group_size: 4
  groups: 4
  resolution: 8
  sampler: flow-euler
rewards:
  - use: brightness
timesteps: {count: 2, t_min: 0.3}
evaluation: {prompts: 4, images: 2}
checkpoints: {every: 1, keep: 9}
"""
"""A sound run file; the mistakes below are made in it, so its lines are known."""


@dataclass(frozen=True)
class World:
    """The working directory, with run.yaml in it."""

    path: Path
    dgpo: Run
    known: Callable[[], Registry]
    monkeypatch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def edit(self, old: str, new: str) -> None:
        """Make a mistake in run.yaml."""
        assert old in TEXT
        self.write("run.yaml", TEXT.replace(old, new, 1))

    def install(self, name: str, **modules: str) -> None:
        """A distribution whose entry point is the module of its name."""
        for module, source in modules.items():
            self.write(f"site/{module}.py", source)
            self.monkeypatch.delitem(sys.modules, module, raising=False)
        self.write(f"site/{name}-1.5.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        self.write(f"site/{name}-1.5.dist-info/entry_points.txt", f"[dgpo]\n{name} = {name}\n")
        self.monkeypatch.syspath_prepend(str(self.path / "site"))
        self.monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def train(self, *options: str) -> None:
        done = self.dgpo("train", "run.yaml", "--quiet", *options)
        assert (done.code, done.out, done.err) == (0, "", "")

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Every file and directory, with its mode."""

        def content(path: Path) -> bytes:
            with open(path, "rb") as file:  # not through Path, which the tests replace
                return file.read()

        return {
            str(p.relative_to(self.path)): (p.stat().st_mode, content(p) if p.is_file() else b"")
            for p in self.path.rglob("*")
        }


def refused(world: World, arguments: Sequence[str], expected: str) -> None:
    """The promise of this file."""
    before = world.tree()
    done = world.dgpo(*arguments)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")
    assert world.tree() == before
