"""Format numbers and durations for people."""

from __future__ import annotations

__all__ = ["number", "seconds"]


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` decimals, or None as a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """Format seconds as 4.1s, 3m05s or 2h10m."""
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
