"""Digests of a base model's files, to detect that a run is resumed with different base weights.

See `dgpo_core.weights.digests` for what a digest of a large file covers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.weights.digests import WEIGHTS, file_digest
from dgpo_schemas.origin import BaseRecord

__all__ = ["base_record", "differences"]

KINDS = (WEIGHTS, ".json", ".model", ".txt")
"""Weights, configurations and vocabularies; pickles are never read."""
INDEX = "model_index.json"
"""Lists the components of a pipeline, which are in subdirectories; no other file at the top level is read then."""
DEEPEST = 4
SNAPSHOT = re.compile(r"[0-9a-f]{40}")


def base_record(directory: Path) -> BaseRecord | None:
    """Return the digests of a base model's directory, or None if it has no file of a known kind.

    Takes a few thousand short reads, whatever the size. Raises UserError for a file that cannot be read.
    """
    directory = directory.absolute()
    files = {}
    for path in _files(directory):
        try:
            files[path.relative_to(directory).as_posix()] = file_digest(path)
        except OSError as error:
            raise UserError(f"backbone.checkpoint: cannot read {path}: {error.strerror or error}") from error
    if not files:
        return None
    hub = directory.parent.name == "snapshots" and SNAPSHOT.fullmatch(directory.name) is not None
    return BaseRecord(directory=str(directory), commit=directory.name if hub else None, files=files)


def differences(before: BaseRecord, now: BaseRecord) -> list[str]:
    """Describe the differences between two records, file by file; empty if the model is the same, wherever it is.

    New files count only in directories that the record has files of, and not in the snapshot of a Hub repository, to
    which later downloads add files.
    """
    found = []
    for name, old in before.files.items():
        new = now.files.get(name)
        if new is None:
            found.append(f"{name} is missing")
        elif new != old:
            found.append(f"{name} has changed" + (f" ({old.bytes} bytes, now {new.bytes})" * (old.bytes != new.bytes)))
    if now.commit is None:
        places = {os.path.dirname(name) for name in before.files}
        found += [
            f"{name} is new" for name in now.files if name not in before.files and os.path.dirname(name) in places
        ]
    return found


def _files(directory: Path) -> Iterator[Path]:
    """Yield the model's files, sorted, following links; not pipes, sockets and devices, which may block when opened."""
    pipeline = (directory / INDEX).is_file()
    for place, directories, names in os.walk(directory, followlinks=True):
        folder = Path(place)
        depth = len(folder.relative_to(directory).parts)
        directories[:] = [] if depth >= DEEPEST else sorted(d for d in directories if not d.startswith("."))
        for name in sorted(names):
            included = name == INDEX if pipeline and depth == 0 else name.endswith(KINDS) and not name.startswith(".")
            if included and ((folder / name).is_file() or not (folder / name).exists()):
                yield folder / name
