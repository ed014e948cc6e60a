"""Warnings as people read them: one line each, with the place of an error instead of its traceback."""

from __future__ import annotations

import logging
import traceback

__all__ = ["OneLine"]


class OneLine(logging.Formatter):
    """`warning: message`, and where an error behind it was raised."""

    def format(self, record: logging.LogRecord) -> str:
        """Without a traceback."""
        where = ""
        if record.exc_info and record.exc_info[2]:
            frame = traceback.extract_tb(record.exc_info[2])[-1]
            where = f" (at {frame.filename}:{frame.lineno})"
        return f"{record.levelname.lower()}: {record.getMessage()}{where}"
