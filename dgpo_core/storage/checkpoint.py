"""Write and read checkpoints: atomic, versioned, safetensors and JSON only, with a digest of every file.

A checkpoint is a directory `checkpoints/000010` with `manifest.json`, `clock.json`, `weights.safetensors` (policy,
ema_fast, ema) and `optimizer.safetensors`. The manifest contains digests of the tensor files, of the logs at that time
and of itself. The clock, which differs between identical runs, has its own digest. Loading verifies all digests and the
directory's name. If a checkpoint is damaged, the previous one is used, with a warning.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.system.files import clear, file_entry, new_directory, remove_directory, write_text
from dgpo_core.system.reading import read_file, why
from dgpo_core.system.version import __version__
from dgpo_schemas.manifest import (
    FORMAT_VERSION,
    CheckpointClock,
    CheckpointManifest,
    DamagedError,
    FileEntry,
    read_clock,
    read_manifest,
    sealed_json,
)
from dgpo_schemas.text import clean, lone_surrogate

__all__ = ["Checkpoint", "Checkpoints", "Clock", "whole_manifests"]

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
CLOCK = "clock.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
NUMBERED = re.compile(r"[0-9]{6}|[1-9][0-9]{6,14}")
"""Name of a checkpoint: its iteration, zero-padded to six digits."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds trained, without evaluations and saving, and the digest of timings.jsonl at that time."""

    trained_seconds: float
    timings: FileEntry


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; tensors are on the CPU."""

    path: Path
    manifest: CheckpointManifest
    clock: CheckpointClock
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def paths(self) -> list[Path]:
        """Return all checkpoints, oldest first. Ignores other names (`000010 copy`, `latest`). Raises UserError."""
        try:
            if not self.directory.is_dir():
                return []
            found = [path for path in self.directory.iterdir() if NUMBERED.fullmatch(path.name) and path.is_dir()]
        except OSError as error:
            raise UserError(f"{self.directory}: cannot be read: {why(error)}") from error
        return sorted(found, key=lambda path: int(path.name))

    def save(
        self,
        *,
        iteration: int,
        updates: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        timesteps: Mapping[str, Any],
        best: tuple[int, float] | None,
        counters: Mapping[str, int],
        logs: Mapping[str, FileEntry],
        clock: Clock,
        spare: int | None = None,
    ) -> Path:
        """Write a checkpoint, then delete old ones, except the newest `keep` and the best.

        logs: digests of metrics.jsonl and evaluations.jsonl as they are now. spare: an iteration; the newest checkpoint
        before it is also kept.
        """
        path = self.directory / f"{iteration:06d}"
        with new_directory(path) as aside:
            for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
                contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
                _save_tensors(contiguous, aside / name)
            manifest = CheckpointManifest(
                format_version=FORMAT_VERSION,
                iteration=iteration,
                updates=updates,
                dgpo_version=__version__,
                files={name: file_entry(aside / name) for name in (WEIGHTS, OPTIMIZER)},
                timesteps=dict(timesteps),
                best_iteration=best[0] if best else None,
                best_score=best[1] if best else None,
                counters=dict(counters),
                logs=dict(logs),
            )
            text = sealed_json(json.loads(manifest.model_dump_json(exclude={"sha256"})))
            (aside / MANIFEST).write_text(text, encoding="utf-8")
            (aside / CLOCK).write_text(_clock_text(iteration, clock), encoding="utf-8")
        self.prune(best, spare)
        return path

    def set_clock(self, iteration: int, clock: Clock) -> None:
        """Update a checkpoint's clock for the line of timings.jsonl written after it, which has the time of saving."""
        path = self.directory / f"{iteration:06d}"
        if (path / CLOCK).exists():  # unless the checkpoint was pruned or damaged since
            write_text(path / CLOCK, _clock_text(iteration, clock))

    def prune(self, best: tuple[int, float] | None, spare: int | None) -> None:
        """Delete old checkpoints as `save` does."""
        before = [int(path.name) for path in self.paths() if spare is not None and int(path.name) < spare]
        for path in self.paths()[: -self.keep]:
            if int(path.name) not in (best and best[0], *before[-1:]):
                try:
                    remove_directory(path)
                except UserError as error:  # must not stop the run
                    log.warning("cannot delete an old checkpoint: %s", error)

    def set_aside_after(self, iteration: int) -> int:
        """Rename the (damaged) checkpoints of later iterations, so that they are ignored; return their number."""
        later = [path for path in self.paths() if int(path.name) > iteration]
        for path in later:
            aside = path.with_name(f".{path.name}.damaged")
            try:
                clear(aside)
                path.rename(aside)
            except OSError as error:
                raise UserError(f"cannot set {path} aside: {why(error)}") from error
        return len(later)

    def find(self, which: str) -> Checkpoint:
        """Load the checkpoint "newest", "best", or of an iteration. Raises UserError listing the existing ones."""
        if which == "newest":
            return self.newest()
        if which == "best":
            newest = self.newest()
            best = newest.manifest.best_iteration
            if best is None or best == newest.manifest.iteration:
                return newest
            if not (self.directory / f"{best:06d}").is_dir():
                raise UserError(f"{self.directory}: the best checkpoint, of iteration {best}, is missing; use newest")
            return self.find(str(best))
        iterations = [int(path.name) for path in self.paths()]
        if not re.fullmatch(r"[0-9]{1,15}", which) or int(which) not in iterations:
            known = ", ".join(map(str, iterations)) or "none"
            raise UserError(
                f"{self.directory}: no checkpoint {clean(which, 60)!r}; there are newest, best and iterations {known}"
            )
        return load(self.directory / f"{int(which):06d}")

    def newest(self) -> Checkpoint:
        """Load the newest intact checkpoint. Logs a warning for each damaged one.

        Raises UserError if there is none, or if the newest has another format version: falling back silently to an
        older one would lose the progress of a newer version of dgpo.
        """
        paths = self.paths()
        if not paths:
            raise UserError(f"{self.directory}: contains no checkpoint{self._others()}")
        reasons = []
        for path in reversed(paths):
            try:
                return load(path)
            except _DamagedError as error:
                reasons.append(str(error))
                log.warning("damaged checkpoint, trying the one before: %s", error)
        raise UserError("all checkpoints are damaged: " + "; ".join(reasons))

    def _others(self) -> str:
        """List other entries for a message, in case one is a renamed or copied checkpoint."""
        try:
            found = sorted(clean(path.name, 60) for path in self.directory.iterdir() if not path.name.startswith("."))
        except OSError:
            return ""
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return f" (only {shown}; a checkpoint is named after its iteration, such as 000010)" if found else ""


def whole_manifests(directory: Path) -> Iterator[tuple[CheckpointManifest, CheckpointClock]]:
    """Yield manifest and clock of the checkpoints, newest first, without reading tensors; skips damaged ones."""
    for path in reversed(Checkpoints(directory).paths()):
        try:
            yield load_manifest(path)
        except UserError:
            continue


class _DamagedError(UserError):
    """A checkpoint whose files do not match its manifest."""


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises UserError naming the file that is missing, damaged or too new."""
    manifest, clock = load_manifest(path)
    tensors = {}
    for name in (WEIGHTS, OPTIMIZER):
        file = path / name
        if name not in manifest.files:
            raise _DamagedError(f"{path / MANIFEST}: does not list {name}")
        if not file.is_file():
            raise _DamagedError(f"{file}: missing")
        try:
            if file_entry(file) != manifest.files[name]:
                raise _DamagedError(f"{file}: its content differs from what was saved (SHA-256)")
            tensors[name] = _read_tensors(file)
        except (SafetensorError, OSError) as error:
            raise _DamagedError(f"{file}: {why(error)}") from error
        nonfinite = next((key for key, tensor in tensors[name].items() if not _is_finite(tensor)), None)
        if nonfinite is not None:  # earlier versions saved these without a check
            raise _DamagedError(f"{file}: {nonfinite} contains non-finite values; a run cannot resume from them")
    return Checkpoint(path, manifest, clock, tensors[WEIGHTS], tensors[OPTIMIZER])


def load_manifest(path: Path) -> tuple[CheckpointManifest, CheckpointClock]:
    """Read and verify manifest and clock of a checkpoint. Raises UserError like `load`."""
    file = path / MANIFEST
    try:
        manifest = read_manifest(read_file(file).decode(), str(file))
        file = path / CLOCK
        clock = read_clock(read_file(file).decode(), str(file))
    except DamagedError as error:
        raise _DamagedError(str(error)) from error
    except FileNotFoundError as error:
        raise _DamagedError(f"{file}: missing") from error
    except OSError as error:
        raise _DamagedError(f"{file}: cannot be read: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise _DamagedError(f"{file}: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if NUMBERED.fullmatch(path.name) and int(path.name) != manifest.iteration:
        raise _DamagedError(
            f"{path}: contains the state after iteration {manifest.iteration}, not {int(path.name)}: it was renamed; "
            f"rename it to {manifest.iteration:06d}"
        )
    if clock.iteration != manifest.iteration:
        raise _DamagedError(f"{path / CLOCK}: of iteration {clock.iteration}, the manifest is of {manifest.iteration}")
    return manifest, clock


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or not tensor.numel() or bool(tensor.isfinite().all())


def _clock_text(iteration: int, clock: Clock) -> str:
    time = {"iteration": iteration, "trained_seconds": clock.trained_seconds}
    return sealed_json(time | {"timings": clock.timings.model_dump()})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = (
        safetensors.torch.load_file(path)
        if lone_surrogate(str(path)) is None
        else safetensors.torch.load(path.read_bytes())  # load_file requires UTF-8 paths
    )
    return found


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:  # for example if the disk is full
        raise OSError(str(error)) from error
