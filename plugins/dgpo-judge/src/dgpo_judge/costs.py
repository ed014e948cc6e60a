"""What a judge costs: requests, tokens and seconds since the last look."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["Costs"]

COUNTED = ("requests", "retries", "failed", "from_journal", "from_cache", "prompt_tokens", "completion_tokens")


class Costs:
    """Counters and latencies. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: list[float] = []

    def count(self, **counts: int) -> None:
        """Add to counters, whose names are in COUNTED."""
        with self._lock:
            self._counts.update(counts)

    def answered(self, seconds: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answer."""
        with self._lock:
            self._seconds.append(seconds)
            self._counts.update(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def take(self) -> dict[str, float]:
        """Return all numbers and begin again: the counters, and the median and 95th percentile of the seconds of a
        request (nearest rank; absent without an answer)."""
        with self._lock:
            counts, seconds = self._counts, sorted(self._seconds)
            self._counts, self._seconds = Counter(), []
        found: dict[str, float] = {name: float(counts[name]) for name in COUNTED}
        if seconds:
            found |= {f"p{p}_seconds": seconds[-(-p * len(seconds) // 100) - 1] for p in (50, 95)}
        return found
