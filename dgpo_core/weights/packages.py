"""Resolve `package:NAME/path`: weights among the files of an installed plugin, found without importing it.

NAME must be the package of an entry point in the group `dgpo`, so that a run file cannot make any other module be
imported, such as one in the working directory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dgpo_core.errors import UserError
from dgpo_core.plugins.discovery import entry_points
from dgpo_schemas.problems import nearest
from dgpo_schemas.text import clean

__all__ = ["PACKAGE", "in_package"]

PACKAGE = "package:"
INDEX = "model_index.json"
SHOWN = 8


def in_package(text: str, where: str) -> Path:
    """Return the directory that `package:NAME/path` names.

    Raises UserError if no installed plugin declares the package, or if the path does not exist or leaves the package.
    """
    shown = clean(text, 300)
    name, _, inner = text.removeprefix(PACKAGE).partition("/")
    if not name or not inner.strip("/. "):
        raise UserError(f"{where}: {shown} is incomplete; write package:NAME/path{_there_are()}")
    declared = _declared()
    if name not in declared:
        raise UserError(
            f"{where}: {shown} requires the package {clean(name, 100)}, which no installed plugin declares (entry "
            f"points of the group dgpo){nearest(name, declared)}{_there_are()}"
        )
    path = PurePosixPath(inner)
    if path.is_absolute() or ".." in path.parts or "\\" in inner or not inner.isprintable():
        raise UserError(f"{where}: {shown}: the path must stay inside the package: names separated by slashes, no ..")
    roots = list(_roots(name))
    if not roots:
        raise UserError(f"{where}: {shown}: the package {name} has no directory of its own; check its installation")
    try:
        found = next((root / path for root in roots if (root / path).is_dir()), None)
    except OSError as error:
        raise UserError(f"{where}: {shown}: cannot be read: {error.strerror or error}") from error
    if found is not None:
        return found
    beside = sorted({p.name for root in roots for p in (root / path).parent.glob("[!_.]*") if p.is_dir()})
    raise UserError(
        f"{where}: {shown}: no such directory: {roots[0] / path}; "
        f"directories beside it: {', '.join(beside[:SHOWN]) or 'none'}"
    )


def _declared() -> set[str]:
    """Return the packages of the installed plugins: the top-level module of each entry point."""
    return {entry_point.module.partition(".")[0] for _, _, entry_point in entry_points()}


def _roots(name: str) -> Iterator[Path]:
    """Yield the directories of a package; none for a single-file module. Does not import a top-level package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return
    if spec is not None:
        yield from (Path(place) for place in spec.submodule_search_locations or ())


def _there_are() -> str:
    """Return "; ..." that lists the pipelines of the installed plugins."""
    found = sorted(
        f"{PACKAGE}{name}/{index.parent.relative_to(root).as_posix()}"
        for name in _declared()
        for root in _roots(name)
        for pattern in (f"*/{INDEX}", f"*/*/{INDEX}")
        for index in root.glob(pattern)
    )
    return f"; available: {', '.join(found[:SHOWN])}" if found else "; no installed plugin contains a model"
