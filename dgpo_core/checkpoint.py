"""Checkpoints: atomic, versioned, safetensors and JSON only, every file with its digest.

A checkpoint is a directory `checkpoints/000010` with `manifest.json`, `weights.safetensors` (policy, old, slow) and
`optimiser.safetensors`. Loading verifies every digest; a damaged checkpoint is named and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dgpo_core import __version__
from dgpo_core.errors import UserError
from dgpo_core.files import new_directory, remove_directory
from dgpo_schemas.manifest import FORMAT_VERSION, CheckpointManifest, FileEntry, read_manifest

__all__ = ["Checkpoint", "Checkpoints"]

log = logging.getLogger(__name__)
WEIGHTS = "weights.safetensors"
OPTIMISER = "optimiser.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; tensors are on the CPU."""

    path: Path
    manifest: CheckpointManifest
    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            (p for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name)
        )

    def save(
        self,
        *,
        iteration: int,
        updates: int,
        weights: Mapping[str, Tensor],
        optimiser: Mapping[str, Tensor],
        timesteps: Mapping[str, Any],
        best: tuple[int, float] | None,
        counters: Mapping[str, int],
    ) -> Path:
        """Write a checkpoint, then drop old ones, except the newest `keep` and the best."""
        path = self.directory / f"{iteration:06d}"
        with new_directory(path) as aside:
            for name, tensors in ((WEIGHTS, weights), (OPTIMISER, optimiser)):
                contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
                _save_tensors(contiguous, aside / name)
            manifest = CheckpointManifest(
                format_version=FORMAT_VERSION,
                iteration=iteration,
                updates=updates,
                dgpo_version=__version__,
                files={name: _entry(aside / name) for name in (WEIGHTS, OPTIMISER)},
                timesteps=dict(timesteps),
                best_iteration=best[0] if best else None,
                best_score=best[1] if best else None,
                counters=dict(counters),
            )
            (aside / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._prune(best[0] if best else None)
        return path

    def _prune(self, best: int | None) -> None:
        for path in self.paths()[: -self.keep]:
            if int(path.name) != best:
                remove_directory(path)

    def set_aside_after(self, iteration: int) -> int:
        """Hide the (damaged) checkpoints of later iterations, which would count as the newest; returns how many."""
        later = [path for path in self.paths() if int(path.name) > iteration]
        for path in later:
            aside = path.with_name(f".{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        return len(later)

    def find(self, which: str) -> Checkpoint:
        """The checkpoint "newest", "best", or of an iteration. Raises UserError naming those there are."""
        if which == "newest":
            return self.newest()
        if which == "best":
            newest = self.newest()
            best = newest.manifest.best_iteration
            return newest if best is None or best == newest.manifest.iteration else self.find(str(best))
        there = [int(path.name) for path in self.paths()]
        if not which.isdecimal() or int(which) not in there:
            known = ", ".join(map(str, there)) or "none"
            raise UserError(f"{self.directory}: no checkpoint {which!r}; there are newest, best and iterations {known}")
        return load(self.directory / f"{int(which):06d}")

    def newest(self) -> Checkpoint:
        """The newest checkpoint that is whole. Damaged ones are named in the log.

        Raises UserError if there is none, or if the newest was written by another format version (falling back
        silently to an older one would lose what the newer program did).
        """
        paths = self.paths()
        if not paths:
            raise UserError(f"{self.directory}: there is no checkpoint")
        reasons = []
        for path in reversed(paths):
            try:
                return load(path)
            except _DamagedError as error:
                reasons.append(str(error))
                log.warning("damaged checkpoint, trying the one before: %s", error)
        raise UserError("no checkpoint is whole: " + "; ".join(reasons))


class _DamagedError(UserError):
    """A checkpoint whose files do not match its manifest."""


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises UserError naming the file that is missing, damaged or too new."""
    manifest_path = path / "manifest.json"
    try:
        text = manifest_path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise _DamagedError(f"{manifest_path}: {error}") from error
    try:
        manifest = read_manifest(text, str(manifest_path))
    except ValueError as error:
        raise UserError(str(error)) from error
    tensors = {}
    for name in (WEIGHTS, OPTIMISER):
        file = path / name
        if name not in manifest.files:
            raise _DamagedError(f"{manifest_path}: does not list {name}")
        if not file.is_file():
            raise _DamagedError(f"{file}: missing")
        try:
            if _entry(file) != manifest.files[name]:
                raise _DamagedError(f"{file}: its content differs from what was saved (SHA-256)")
            tensors[name] = safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            raise _DamagedError(f"{file}: {error}") from error
    return Checkpoint(path, manifest, tensors[WEIGHTS], tensors[OPTIMISER])


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:  # a full disk comes as this
        raise OSError(str(error)) from error


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)
