"""The steps of the session, their limits, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

__all__ = ["STEPS", "TOTAL", "Row", "Session", "Step"]

TOTAL = 540.0
"""Seconds of the whole session."""


@dataclass(frozen=True)
class Row:
    """Something measured. ideal: what the roofline or the plan says, in the same unit; bound: the most that a check
    allows."""

    what: str
    value: float | int | str
    unit: str = ""
    ideal: float | None = None
    bound: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the fields that say something as JSON data, and whether a check is passed."""
        found = {name: value for name, value in asdict(self).items() if value is not None and value != ""}
        if self.bound is not None and not isinstance(self.value, str):
            found["passed"] = bool(self.value <= self.bound)  # not for nan
        return found


@dataclass
class Session:
    """What steps are given. tiny: a dry run with small models; directory: for files; counts: of the roofline by case;
    found: rows of earlier steps by name."""

    device: torch.device
    tiny: bool
    directory: Path
    counts: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    def value(self, what: str) -> float | None:
        """Return the number that an earlier step reported under a name, if it did."""
        for rows in self.found.values():
            for row in rows:
                if row["what"] == what and not isinstance(row["value"], str):
                    return float(row["value"])
        return None


@dataclass(frozen=True)
class Step:
    """A step: seconds is its limit; work: `module:function`, from a Session to rows."""

    name: str
    seconds: float
    work: str

    def run(self, session: Session) -> list[Row]:
        """Do it."""
        module, _, name = self.work.partition(":")
        function: Callable[[Session], list[Row]] = getattr(import_module(module), name)
        return function(session)


HERE = "benchmarks.session"
STEPS = (
    Step("versions", 20, f"{HERE}.hardware:versions"),
    Step("rates", 30, f"{HERE}.hardware:rates"),
    Step("CPU against GPU", 30, f"{HERE}.exactness:agreement"),
    Step("deterministic run", 40, f"{HERE}.exactness:determinism"),
    Step("out of memory", 20, f"{HERE}.exactness:halving"),
    Step("sd3.5-m 512", 60, f"{HERE}.models:sd35_512"),
    Step("decoding", 20, f"{HERE}.models:decoding"),
    Step("savings", 60, f"{HERE}.models:savings"),
    Step("compiled", 120, f"{HERE}.models:compiled"),
    Step("sd3.5-m 1024", 50, f"{HERE}.models:sd35_1024"),
    Step("wan2.1 1.3b", 50, f"{HERE}.models:wan"),
    Step("rewards", 40, f"{HERE}.rewards:streams"),
)
"""In order. A step that takes less than its limit leaves the rest to the last ones."""
