"""The experiments, and their settings beside the ablation file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

__all__ = ["EXPERIMENTS", "HERE", "SECONDS", "SIGNAL", "Experiment"]

SECONDS = "seconds"
"""The experiment that is no ablation: what savings are worth at equal seconds (`experiments.seconds`)."""
SIGNAL = "signal"
"""Another one: signal to noise of one group's gradient at fixed weights (`experiments.signal`)."""

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. against: x axes of the curves; sheet: solver steps of the samples on the contact sheet (None: the
    images of the evaluation); margin: how small a difference counts as none."""

    key: str
    title: str
    against: tuple[Literal["samples", "seconds"], ...] = ("samples",)
    sheet: int | None = None
    margin: float | None = None
    width: float | None = None
    """Half-width of 95 % intervals by which the number of seeds was decided."""
    beside: str | None = None
    """Key of another experiment whose record the page uses too."""
    summed: Literal["samples", "seconds"] | None = None
    """At which equal budget the summary compares its changes; None if it leaves them out."""

    @property
    def file(self) -> Path:
        """The ablation file, which can have the sections `targets` and `tuning` beside (`experiments.conduct`)."""
        return HERE / f"{self.key}.yaml"

    @property
    def targets(self) -> Sequence[float]:
        """Scores to be reached, in ascending order, if the file has several."""
        found: list[float] = self._read().get("targets", [])
        return found

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds that the ablation file asks for."""
        found: int | list[int] = self._read()["seeds"]
        return range(found) if isinstance(found, int) else found

    @property
    def tuned(self) -> bool:
        """Whether its settings are searched for before it runs."""
        return "tuning" in self._read()

    def _read(self) -> dict[str, Any]:
        data: dict[str, Any] = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        return data


EXPERIMENTS = {
    one.key: one
    for one in (
        Experiment("e1", "ODE against SDE rollouts", margin=0.02, width=0.015, summed="samples"),
        Experiment("e2", "The timestep clip t_min", sheet=64, margin=0.02, width=0.015, summed="samples"),
        Experiment("e3", "Pairs against groups", margin=0.02, summed="samples"),
        Experiment("e4", "DGPO against Flow-GRPO", against=("samples", "seconds")),
        Experiment("e5", "Weightings", margin=0.02, width=0.015, summed="samples"),
        Experiment("e6", "Adaptive against fixed t_min", margin=0.02, width=0.015, summed="samples"),
        Experiment("e7", "The group size", margin=0.02, width=0.015, summed="samples"),
        Experiment("e8", "Video"),
        Experiment("e9", "Comparisons against values", margin=0.05),
        Experiment(
            "e10",
            "Ideas at equal samples and equal seconds",
            against=("samples", "seconds"),
            margin=0.02,
            summed="seconds",
        ),
        Experiment("e11", "A flawed reward, hacked on purpose"),
        Experiment(
            "e12",
            "Diversity: good samples unlike the others, and a reference that is reset",
            margin=0.02,
            summed="samples",
        ),
        Experiment("e13", "A KL term where another reward contradicts the trained one", margin=0.02),
        Experiment(
            "confirm-fast",
            "The best ideas on fresh seeds",
            against=("samples", "seconds"),
            margin=0.02,
            summed="seconds",
        ),
        Experiment(
            "confirm",
            "The best ideas in the standard miniature",
            against=("samples", "seconds"),
            margin=0.02,
            beside="confirm-fast",
        ),
        Experiment("order-fast", "The same contrasts in the fast miniature", margin=0.02),
        Experiment("order", "The fast miniature against the standard one", margin=0.02, beside="order-fast"),
    )
}
