"""Where a backbone's weights are: a directory, an installed package, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from dgpo_core.errors import UserError

__all__ = ["resolve_checkpoint"]

PACKAGE = "package:"
HUB_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FORMS = "a directory, a Hub repository (owner/name), or package:NAME/path for weights inside an installed package"


def resolve_checkpoint(text: str) -> str:
    """What `backbone.checkpoint` names: the absolute path of a directory that exists, or the name of a Hub repository.

    A directory wins over a Hub repository of the same name; nothing is downloaded. `package:NAME/path` is looked up
    among the files of the installed package NAME. Raises UserError for a package or a path that does not exist.
    """
    if text.startswith(PACKAGE):
        return str(_in_package(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists():
        raise UserError(f"backbone.checkpoint: {text} is a file; allowed is {FORMS}")
    if not HUB_REPOSITORY.fullmatch(text):
        parent = next(p for p in path.absolute().parents if p.is_dir())
        raise UserError(
            f"backbone.checkpoint: there is no directory {text} (the nearest that exists is {parent}); "
            f"allowed is {FORMS}"
        )
    return text


def _in_package(text: str) -> Path:
    name, _, inner = text.removeprefix(PACKAGE).partition("/")
    if not name or not inner:
        raise UserError(f"backbone.checkpoint: {text} is incomplete; write package:NAME/path")
    try:
        root = Path(str(files(name)))
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(
            f"backbone.checkpoint: {text} wants the package {name}, which is not installed or not importable "
            f"({error}); install the distribution that holds it, e.g. pip install {name.replace('_', '-')}"
        ) from error
    path = root / inner
    if not path.is_dir():
        found = sorted(p.name for p in path.parent.glob("[!_.]*") if p.is_dir()) if path.parent.is_dir() else []
        raise UserError(
            f"backbone.checkpoint: {text}: there is no directory {path}; "
            f"directories beside it: {', '.join(found) or 'none'}"
        )
    return path
