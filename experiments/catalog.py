"""Which experiments there are, and what each needs beside its ablation file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["EXPERIMENTS", "HERE", "Experiment"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment. `against`: what the curves are drawn against; `sheet`: steps at which samples are drawn for the
    contact sheet (None: the evaluation's own images); `search`: an ablation that chooses learning rates first."""

    key: str
    title: str
    against: tuple[Literal["samples", "seconds"], ...] = ("samples",)
    sheet: int | None = None
    search: str | None = None

    @property
    def file(self) -> Path:
        """Its ablation."""
        return HERE / f"{self.key}.yaml"


EXPERIMENTS = {
    one.key: one
    for one in (
        Experiment("e1", "ODE against SDE rollouts"),
        Experiment("e2", "The timestep clip t_min", sheet=64),
        Experiment("e3", "Pairs against groups"),
        Experiment("e4", "DGPO against Flow-GRPO", against=("samples", "seconds"), search="e4-search"),
        Experiment("e5", "Weightings"),
        Experiment("e6", "Adaptive against fixed t_min"),
        Experiment("e7", "The group size"),
        Experiment("e8", "Video"),
    )
}
