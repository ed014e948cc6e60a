"""Why a repository of the Hugging Face Hub cannot be fetched, in one sentence with the way on."""

from __future__ import annotations

import errno
import os

from dgpo_core.errors import UserError
from dgpo_schemas.text import clean, error_text

__all__ = ["first_line", "unreachable"]

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
FALSE = ("", "0", "no", "off", "false", "n", "f")


def unreachable(where: str, repository: str, revision: str | None, error: BaseException) -> UserError:
    """What to raise for an exception of huggingface_hub, known by the names of its classes: importing it takes long.

    where: how the message begins, such as "backbone.checkpoint".
    """
    at = f" at revision {clean(revision, 100)}" if revision else ""
    return UserError(
        f"{where}: {repository} is no directory here, and as a Hub repository{at} it cannot be fetched: "
        f"{_why(repository, revision, error)}"
    )


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its class."""
    said = error_text(error).removeprefix(f"{type(error).__name__}: ")
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def _why(repository: str, revision: str | None, error: BaseException) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    said = first_line(error)
    download = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    variable = next((name for name in OFFLINE if os.environ.get(name, "").lower() not in FALSE), None)
    if "GatedRepoError" in names:
        return (
            f"it is gated: accept its license at https://huggingface.co/{repository}, and log in with `hf auth login` "
            "or a token in HF_TOKEN"
        )
    if "RevisionNotFoundError" in names:
        return f"it has no revision {revision} (a branch, a tag, or a commit)"
    if "RepositoryNotFoundError" in names:
        return (
            "there is no such repository, or it is private: check the spelling, or log in with `hf auth login` or a "
            "token in HF_TOKEN"
        )
    if "DisabledRepoError" in names:
        return "the Hub has disabled it"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} and variable:
        return (
            f"{variable} is set, and the cache has not all of it; unset it, or fetch the repository where there is a "
            f"network ({download} --local-dir DIRECTORY) and give the directory"
        )
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ProxyError"}:
        return (
            f"the Hub cannot be reached, and the cache has not all of it ({said}); fetch it where there is a network "
            f"({download} --local-dir DIRECTORY) and give the directory"
        )
    if "EntryNotFoundError" in names:
        return f"it is not a model in the format that is wanted: {said}"
    if "HFValidationError" in names:
        return f"that is no name of a repository, which is owner/name: {said}"
    if status == 401:
        return "the token is not valid: log in again with `hf auth login`, or set HF_TOKEN anew"
    if status == 403:
        return "your account may not read it: ask for access on its page, or log in with another (`hf auth login`)"
    if status == 429:
        return "the Hub says that you ask too often: wait, or log in with `hf auth login`"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}: the cache lies where HF_HOME says"
    return f"{said} (a gated model wants its license accepted and `hf auth login`)"
