"""Locate a backbone's weights: a directory, an installed package, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.weights.elsewhere import what_file
from dgpo_core.weights.packages import PACKAGE, in_package
from dgpo_schemas.text import clean

__all__ = ["locate", "resolve_checkpoint"]

HUB_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#\s]+/[^/?#\s]+).*")
CACHE_ENTRY = re.compile(r"models--([A-Za-z0-9][\w.-]*?)--([A-Za-z0-9][\w.-]*)", re.ASCII)
FORMS = "a directory, a Hub repository (owner/name), or package:NAME/path for weights inside an installed package"


def resolve_checkpoint(text: str) -> str:
    """Resolve `backbone.checkpoint` to the absolute path of an existing directory or the name of a Hub repository.

    A directory takes precedence over a Hub repository of the same name; nothing is downloaded. `package:NAME/path` is
    looked up among the files of the installed package NAME, which is not imported. Raises UserError if the package or
    the path does not exist.
    """
    if text.startswith(PACKAGE):
        return str(in_package(text, "backbone.checkpoint"))
    directory = locate(text, "backbone.checkpoint")
    return text if directory is None else str(directory)


def locate(text: str, where: str, *, forms: str = FORMS) -> Path | None:
    """Return the absolute path of a directory; None for a valid Hub repository name, which may not exist.

    where: the start of messages, such as "backbone.checkpoint". forms: the allowed values, for messages. Raises
    UserError for a file, for a path that cannot be read, and for one that neither exists nor can name a repository.
    """
    shown = clean(text, 300)
    if not text.strip() or "\0" in text:
        raise UserError(f"{where}: {text!r} is not a path; allowed is {forms}")
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    try:
        mode = path.stat().st_mode
    except NotADirectoryError as error:
        raise UserError(f"{where}: no such directory: {shown}: a parent of it is a file; allowed is {forms}") from error
    except FileNotFoundError:
        _raise_unless_repository(text, path, where, forms)
        return None
    except (OSError, ValueError) as error:  # a link loop, no permission, a name that is too long or invalid
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{where}: {shown} cannot be read: {reason}; allowed is {forms}") from error
    if not stat.S_ISDIR(mode):
        raise UserError(f"{where}: {shown} is a file{what_file(path, pipeline=forms is FORMS)}; allowed is {forms}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{where}: {shown} is a directory that you have no permission to read")
    return path.resolve()


def _raise_unless_repository(text: str, path: Path, where: str, forms: str) -> None:
    """Raise UserError, with a hint, for a text that is neither an existing path nor a valid Hub repository name."""
    shown = clean(text, 300)
    if path.is_symlink():
        raise UserError(f"{where}: {shown} is a link to {clean(os.readlink(path), 300)}, which does not exist")
    entry = CACHE_ENTRY.fullmatch(text)
    if entry is not None:
        raise UserError(f"{where}: no such directory: {text}; to use the Hub repository, write {entry[1]}/{entry[2]}")
    if HUB_REPOSITORY.fullmatch(text):
        return
    address = HUB_ADDRESS.fullmatch(text)
    name, _, revision = text.partition("@")
    if address is not None:
        hint = f"it is a URL; write the name of the repository, {clean(address[1], 200)}"
    elif "://" in text:
        hint = "URLs are not supported; download it first and use that directory"
    elif revision and HUB_REPOSITORY.fullmatch(name):
        hint = f"the revision of a Hub repository is a separate key: checkpoint: {name}, revision: {revision}"
    elif text.count("/") == 2 and text.endswith("/") and HUB_REPOSITORY.fullmatch(text[:-1]):
        hint = f"write a Hub repository without the trailing slash: {text[:-1]}"
    else:
        hint = f"the nearest existing directory is {_nearest(path)}"
    raise UserError(f"{where}: no such directory: {shown} ({clean(hint, 600)}); allowed is {forms}")


def _nearest(path: Path) -> Path:
    return next((p for p in path.absolute().parents if os.path.isdir(p)), Path("/"))
