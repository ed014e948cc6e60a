"""Explain in one sentence why a Hugging Face Hub repository cannot be downloaded, and how to fix it."""

from __future__ import annotations

import errno
import os

from dgpo_core.errors import UserError
from dgpo_schemas.text import clean, error_text

__all__ = ["first_line", "unreachable"]

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
FALSE = ("", "0", "no", "off", "false", "n", "f")


def unreachable(where: str, repository: str, revision: str | None, error: BaseException) -> UserError:
    """Return the UserError for an exception of huggingface_hub.

    Exceptions are recognized by class name, because importing huggingface_hub is slow. where: the start of the message,
    such as "backbone.checkpoint".
    """
    at = f" at revision {clean(revision, 100)}" if revision else ""
    return UserError(
        f"{where}: {repository} is not a local directory, and as a Hub repository{at} it cannot be downloaded: "
        f"{_why(repository, revision, error)}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class name."""
    message = error_text(error).removeprefix(f"{type(error).__name__}: ")
    return next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)


def _why(repository: str, revision: str | None, error: BaseException) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = first_line(error)
    download = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    variable = next((name for name in OFFLINE if os.environ.get(name, "").lower() not in FALSE), None)
    if "GatedRepoError" in names:
        return (
            f"it is gated; accept its license at https://huggingface.co/{repository}, and log in with `hf auth login` "
            "or a token in HF_TOKEN"
        )
    if "RevisionNotFoundError" in names:
        return f"it has no revision {revision} (a branch, a tag, or a commit)"
    if "RepositoryNotFoundError" in names:
        return (
            "no such repository, or it is private; check the spelling, or log in with `hf auth login` or a "
            "token in HF_TOKEN"
        )
    if "DisabledRepoError" in names:
        return "the Hub has disabled it"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} and variable:
        return (
            f"{variable} is set, and the cache does not have all of it; unset it, or, on a machine with network "
            f"access: {download} --local-dir DIRECTORY; then set the path to DIRECTORY"
        )
    detail = "" if "LocalEntryNotFoundError" in names else f" ({reason})"  # its text repeats the sentence
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ProxyError"}:
        return (
            f"the Hub cannot be reached, and the cache does not have all of it{detail}; on a machine with network "
            f"access: {download} --local-dir DIRECTORY; then set the path to DIRECTORY"
        )
    if "EntryNotFoundError" in names:
        return f"it is not a model in the required format: {reason}"
    if "HFValidationError" in names:
        return f"it is not a valid repository name (owner/name): {reason}"
    if status == 401:
        return "the token is invalid; log in again with `hf auth login`, or set HF_TOKEN to a valid token"
    if status == 403:
        return "your account has no access; request access on its page, or use another account (`hf auth login`)"
    if status == 429:
        return "the Hub limits the rate of your requests; wait, or log in with `hf auth login`"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}; set HF_HOME to move the cache"
    return f"{reason} (a gated model requires an accepted license and `hf auth login`)"
