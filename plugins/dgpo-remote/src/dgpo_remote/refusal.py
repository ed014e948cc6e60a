"""Why a request is not served."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request that is not served: its status, whose fault it is (see `ErrorDetail.kind`) and the reason."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}
