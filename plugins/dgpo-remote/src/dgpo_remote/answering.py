"""The service's answers as JSON, errors above all: whatever went wrong, they have one form and are fit to be shown."""

from __future__ import annotations

import json

from pydantic import BaseModel

from dgpo_schemas.service import ErrorAnswer, ErrorDetail
from dgpo_schemas.text import clean, error_text

__all__ = ["as_text", "error_message", "said"]


def as_text(message: BaseModel) -> str:
    """A message as a line of JSON. Escaped: diagnostics may hold texts that are not valid Unicode."""
    return json.dumps(message.model_dump(mode="python"), separators=(",", ":"), default=list) + "\n"


def error_message(kind: str, text: str) -> ErrorAnswer:
    """An error of a kind of `ErrorDetail`; its text is bounded, in one line, and moves no terminal's cursor."""
    return ErrorAnswer(error=ErrorDetail.model_validate({"kind": kind, "message": clean(text)}))


def said(error: BaseException) -> str:
    """What an exception says, whatever its `__str__` does."""
    try:
        return str(error)
    except BaseException:  # a plugin's exception may raise anything when it is asked for its text
        return error_text(error)
