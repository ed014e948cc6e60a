"""Results by what was measured, kept in a file, so that an experiment continues where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Kept"]


class Kept:
    """A file of lines [what was measured, result], both as JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._found: dict[str, Any] = dict(map(json.loads, lines))

    def has(self, what: Mapping[str, Any]) -> bool:
        """Return whether the file has a result."""
        return _key(what) in self._found

    def once(self, what: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """Return the result of `work`, which runs unless the file has it."""
        key = _key(what)
        if key not in self._found:
            self._found[key] = work()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._found[key]]) + "\n")
        return self._found[key]


def _key(what: Mapping[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)
