"""One-line log messages, with the location of an error instead of its traceback."""

from __future__ import annotations

import logging
import traceback

__all__ = ["OneLine"]


class OneLine(logging.Formatter):
    """Formats records as `warning: message`, followed by the location of the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record without a traceback."""
        where = ""
        if record.exc_info and record.exc_info[2]:
            frame = traceback.extract_tb(record.exc_info[2])[-1]
            where = f" (at {frame.filename}:{frame.lineno})"
        return f"{record.levelname.lower()}: {record.getMessage()}{where}"
