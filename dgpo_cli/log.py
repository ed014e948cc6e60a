"""Log messages of one line: of errors with the location instead of the traceback, of the Hub without its retries."""

from __future__ import annotations

import logging
import re
import traceback

__all__ = ["HubRetries", "OneLine", "announce_retries"]

HUB_CLIENT = "huggingface_hub.utils._http"
"""The logger of requests to the Hub."""


class OneLine(logging.Formatter):
    """Formats records as `warning: message`, followed by the location of the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record without a traceback."""
        where = ""
        if record.exc_info and record.exc_info[2]:
            frame = traceback.extract_tb(record.exc_info[2])[-1]
            where = f" (at {frame.filename}:{frame.lineno})"
        return f"{record.levelname.lower()}: {record.getMessage()}{where}"


class HubRetries(logging.Filter):
    """Announces once that the Hub does not answer, in place of two lines of the Hub's client for each retry.

    The client gives up after half a minute; what failed is then said by the error. Other messages pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._announced = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown; the first about a failed request has another text."""
        text = record.getMessage()
        if "Retrying in " not in text and " thrown while requesting " not in text:
            return True
        if self._announced:
            return False
        self._announced = True
        host = re.search(r"https?://([^/\s]+)", text)
        record.msg, record.args = f"{host[1] if host else 'the Hub'} does not answer; trying again for a while", ()
        return True


def announce_retries() -> None:
    """Announce once per call of a program that the Hub does not answer (`HubRetries`)."""
    logger = logging.getLogger(HUB_CLIENT)
    for earlier in [one for one in logger.filters if isinstance(one, HubRetries)]:
        logger.removeFilter(earlier)
    logger.addFilter(HubRetries())
