"""Run directories with known defects, for tests of `dgpo doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dgpo_kit.toy import run_data
from dgpo_lab.doctoring.diagnosis import Diagnosis
from dgpo_lab.doctoring.findings import Finding
from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, TimingRecord
from dgpo_schemas.run import RunConfig

Run = Callable[..., Any]
Value = Any
"""A number, or a function that maps the iteration to one."""

SOUND: dict[str, Any] = {
    "rollout": {"steps": 10, "shift": 3.0, "group_size": 12, "groups": 8, "sampler": "flow-dpmpp"},
    "timesteps": {"count": 4, "t_min": "shift(0.3)"},
    "optimizer": {"learning_rate": 3e-3},
    "objective": {"kl": 0.02, "beta": 20.0},
}
"""Settings with which a toy run has no findings."""


def wave(iteration: int) -> float:
    """Deterministic noise between -1 and 1."""
    return float(np.sin(12.9898 * iteration) * 0.5 + np.sin(78.233 * iteration) * 0.5)


def metrics(iteration: int, total: int, changes: Mapping[str, Value]) -> dict[str, Any]:
    """Return one line of metrics.jsonl of a sound run; changes: dotted key to value."""
    share, noise = iteration / total, wave(iteration)
    reward = {"mean": 0.4 + 0.3 * share + 0.03 * noise, "std": 0.3, "missing": 0}
    line: dict[str, Any] = {
        "iteration": iteration, "updates": iteration, "reward": reward, "rewards": {"brightness": dict(reward)},
        "zero_variance_groups": 1, "missing_rewards": 0, "residual": 0.0, "sigmoid": 0.47 + 0.01 * noise,
        "clip_fraction": 0.1, "dsm": 0.5, "dsm_reference": 0.5, "kl": 0.06 * share, "extra": {}, "grad_norm": 0.02,
        "learning_rate": 3e-3, "skipped_updates": 0, "optimized_members": 384, "skipped_members": 0,
        "change_norm": 2 * share, "diversity": 0.2, "t_min": 0.57, "t_max": 0.99,
        "statistics": {"saturation": 0.4, "edge_density": 0.2, "dark_pixels": 0.05},
    }  # fmt: skip
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = line
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value(iteration) if callable(value) else value
    return MetricsRecord.model_validate(line).model_dump(mode="json")


def evaluation(iteration: int, name: str, value: float, role: str = "target", wide: float = 0.02) -> dict[str, Any]:
    """Return one line of evaluations.jsonl, with an interval of ±`wide`."""
    return EvaluationRecord.model_validate(
        {
            "iteration": iteration, "model": "ema", "reward": name, "role": role, "value": value, "low": value - wide,
            "high": value + wide, "n": 60, "missing": 0, "groups": {},
        }
    ).model_dump(mode="json")  # fmt: skip


def evaluations(total: int, **curves: Sequence[float]) -> list[dict[str, Any]]:
    """Return evenly spaced evaluations; brightness is the target, gloom a monitor, all others are statistics."""
    roles = {"brightness": "target", "gloom": "monitor"}
    curves = {"brightness": (0.4, 0.7), **curves}
    return [
        evaluation(round(i * total / (len(values) - 1)), name, value, roles.get(name, "statistic"))
        for name, values in curves.items()
        for i, value in enumerate(values)
    ]


@dataclass(frozen=True)
class Written:
    """A run to be written, described by its differences from a sound one."""

    n: int = 30
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] | None = field(default_factory=dict)
    waiting: float = 0.1
    outcome: str | None = "finished"

    def write(self, run: Path) -> Path:
        """Write a run directory with `n` iterations."""
        run.mkdir(parents=True)
        sections = {**SOUND, **{"run": {"iterations": self.n, "name": run.name}}}
        for section, values in self.config.items():
            both = isinstance(values, Mapping) and isinstance(sections.get(section), Mapping)
            sections[section] = {**sections[section], **values} if both else values
        config = RunConfig.model_validate(run_data(run.parent, **sections))
        (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        numbers = range(1, self.n + 1)
        self._log(run / "metrics.jsonl", [metrics(i, self.n, self.metrics) for i in numbers])
        self._log(run / "timings.jsonl", [self._timing(i) for i in numbers])
        if self.curves is not None:
            self._log(run / "evaluations.jsonl", evaluations(self.n, **self.curves))
        if self.outcome is not None:
            ended_by = "iterations" if self.outcome == "finished" else None
            record = {"outcome": self.outcome, "iteration": self.n, "ended_by": ended_by}
            (run / "outcome.json").write_text(OutcomeRecord.model_validate(record).model_dump_json())
        (run / "run.json").write_text("{}")
        return run

    def _timing(self, iteration: int) -> dict[str, Any]:
        phases = {"wait_for_scores": {"seconds": 10 * self.waiting, "samples_per_second": None}}
        line = {"iteration": iteration, "seconds": 10.0, "phases": phases, "rewards": {"brightness": 2.0}}
        return TimingRecord.model_validate({**line, "peak_memory_bytes": 1}).model_dump(mode="json")

    @staticmethod
    def _log(path: Path, lines: Sequence[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def found(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.id: finding for finding in diagnosis.findings}


def sized(size: int, **more: Any) -> dict[str, Any]:
    return {"rollout": {"group_size": size, **more}}


CREEPING = {"change_norm": lambda i: 1e-6 * i}
TWO_REWARDS = [{"use": "brightness"}, {"use": "brightness", "name": "second.one"}]


def second(std: float) -> dict[str, Any]:
    """Return metrics with a second reward, whose label has a dot."""
    return {"rewards": lambda i: {
        "brightness": {"mean": 0.4 + i / 100, "std": 0.3, "missing": 0},
        "second.one": {"mean": 0.5, "std": std, "missing": 0},
    }}  # fmt: skip


def late(before: float, after: float, since: int = 15) -> Callable[[int], float]:
    """Return a function that switches from one value to another at an iteration."""
    return lambda iteration: before if iteration < since else after


def whole(iteration: int) -> float:
    """Return a mean over 32 sigmoids that are 0 or 1; one of the 8 groups has no preference, so 4 of them are 1/2."""
    return 0.5 if iteration == 1 else (2 + (5 * iteration) % 17) / 32
