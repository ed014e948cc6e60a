"""Rejection of a request by the service."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """A rejected request. status: HTTP status; kind: see `ErrorDetail.kind`; headers: further response headers."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}
