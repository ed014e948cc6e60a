"""`dgpo doctor`, on logs whose sickness is known because it is written into them, and on a real toy run."""

from __future__ import annotations

import fcntl
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from dgpo_baselines import plugin as baselines
from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Schedule
from dgpo_kit.toy import run_data
from dgpo_lab.doctoring import telling
from dgpo_lab.doctoring.diagnosis import Diagnosis, diagnose
from dgpo_lab.doctoring.facts import read_facts
from dgpo_lab.doctoring.findings import Change, Finding, percent, written
from dgpo_lab.doctoring.outputs import resolved_sigma
from dgpo_lab.doctoring.trends import Series
from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, TimingRecord
from dgpo_schemas.run import RunConfig

Run = Callable[..., Any]
Value = Any
"""A number, or a function of the iteration that gives one."""

SOUND: dict[str, Any] = {
    "rollout": {"steps": 10, "shift": 3.0, "group_size": 12, "groups": 8, "sampler": "flow-dpmpp"},
    "timesteps": {"count": 4, "t_min": "shift(0.3)"},
    "optimiser": {"learning_rate": 3e-3},
    "objective": {"kl": 0.02, "beta": 20.0},
}
"""What a toy run must be told to be as it should."""


def wave(iteration: int) -> float:
    """Noise that is the same every time, between -1 and 1."""
    return float(np.sin(12.9898 * iteration) * 0.5 + np.sin(78.233 * iteration) * 0.5)


def metrics(iteration: int, total: int, changes: Mapping[str, Value]) -> dict[str, Any]:
    """One line of metrics.jsonl of a sound run; changes: dotted key to value."""
    share, noise = iteration / total, wave(iteration)
    reward = {"mean": 0.4 + 0.3 * share + 0.03 * noise, "std": 0.3, "missing": 0}
    line: dict[str, Any] = {
        "iteration": iteration, "updates": iteration, "reward": reward, "rewards": {"brightness": dict(reward)},
        "zero_variance_groups": 1, "missing_rewards": 0, "residual": 0.0, "sigmoid": 0.47 + 0.01 * noise,
        "clip_fraction": 0.1, "dsm": 0.5, "dsm_reference": 0.5, "kl": 0.06 * share, "extra": {}, "grad_norm": 0.02,
        "learning_rate": 3e-3, "skipped_updates": 0, "optimised_members": 384, "skipped_members": 0,
        "change_norm": 2 * share, "diversity": 0.2, "t_min": 0.57, "t_max": 0.99,
        "statistics": {"saturation": 0.4, "edge_density": 0.2, "dark_pixels": 0.05},
    }  # fmt: skip
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = line
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value(iteration) if callable(value) else value
    return MetricsRecord.model_validate(line).model_dump(mode="json")


def evaluation(iteration: int, name: str, value: float, role: str = "target", wide: float = 0.02) -> dict[str, Any]:
    """One line of evaluations.jsonl, with an interval of so much on both sides."""
    return EvaluationRecord.model_validate(
        {
            "iteration": iteration, "view": "slow", "reward": name, "role": role, "value": value, "low": value - wide,
            "high": value + wide, "n": 60, "missing": 0, "groups": {},
        }
    ).model_dump(mode="json")  # fmt: skip


def evaluations(total: int, **curves: Sequence[float]) -> list[dict[str, Any]]:
    """Evenly over the run; brightness is the target, gloom a guard, all others statistics."""
    roles = {"brightness": "target", "gloom": "guard"}
    curves = {"brightness": (0.4, 0.7), **curves}
    return [
        evaluation(round(i * total / (len(values) - 1)), name, value, roles.get(name, "statistic"))
        for name, values in curves.items()
        for i, value in enumerate(values)
    ]


@dataclass(frozen=True)
class Written:
    """A run as it is to be written: what differs from a sound one."""

    n: int = 30
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] | None = field(default_factory=dict)
    waiting: float = 0.1
    outcome: str | None = "finished"

    def write(self, run: Path) -> Path:
        """A run directory of `n` iterations."""
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
        verbs = {"wait_for_scores": {"seconds": 10 * self.waiting, "samples_per_second": None}}
        line = {"iteration": iteration, "seconds": 10.0, "verbs": verbs, "rewards": {"brightness": 2.0}}
        return TimingRecord.model_validate({**line, "peak_memory_bytes": 1}).model_dump(mode="json")

    @staticmethod
    def _log(path: Path, lines: Sequence[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def examine(tmp_path: Path, known: Registry) -> Callable[[Written], Diagnosis]:
    """The diagnosis of a written run; the reward brightness declares [0, 1]."""
    count = iter(range(100))
    known.register(baselines, distribution="dgpo-baselines", version="1.0")  # random samplers

    def make(sick: Written) -> Diagnosis:
        return diagnose(read_facts(sick.write(tmp_path / f"run-{next(count)}"), known))

    return make


def found(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.id: finding for finding in diagnosis.findings}


def sized(size: int, **more: Any) -> dict[str, Any]:
    return {"rollout": {"group_size": size, **more}}


CREEPING = {"change_norm": lambda i: 1e-6 * i}
TWO_REWARDS = [{"use": "brightness"}, {"use": "brightness", "name": "second.one"}]


def second(std: float) -> dict[str, Any]:
    """Metrics of a second reward, whose label has a dot."""
    return {"rewards": lambda i: {
        "brightness": {"mean": 0.4 + i / 100, "std": 0.3, "missing": 0},
        "second.one": {"mean": 0.5, "std": std, "missing": 0},
    }}  # fmt: skip


def late(before: float, after: float, since: int = 15) -> Callable[[int], float]:
    """One value, and another one from an iteration on."""
    return lambda iteration: before if iteration < since else after


def whole(iteration: int) -> float:
    """A mean over 32 sigmoids that are 0 or 1; one of the 8 groups has no preference, so 4 of them are 1/2."""
    return 0.5 if iteration == 1 else (2 + (5 * iteration) % 17) / 32


@dataclass(frozen=True)
class Case:
    """A sign: what shows it, what just does not, and a change that must be suggested."""

    id: str
    severity: str
    sick: Written
    sound: Written
    change: str = ""


CASES = [
    Case("t-min-too-low", "problem",
         Written(config={"timesteps": {"t_min": 0.0}}), Written(config={"timesteps": {"t_min": 0.26}}),
         "timesteps.t_min: 0 -> shift(0.3)"),
    Case("t-min-too-low", "warning",  # DPM-Solver++ visits 0.25 last
         Written(config={"timesteps": {"t_min": 0.1}}), Written(config={"timesteps": {"t_min": 0.25}}),
         "timesteps.t_min: 0.1 -> shift(0.3)"),
    Case("t-min-too-low", "note",
         Written(config={"timesteps": {"t_min": 0.2}}), Written(config={"timesteps": {"t_min": 0.25}}),
         "timesteps.t_min: 0.2 -> shift(0.3)"),
    Case("t-min-too-low", "problem",  # of an adaptive policy: the bound that it draws from counts
         Written(config={"timesteps": {"t_min": 0.0}}, metrics={"timesteps.t_min": late(0.5, 0.01)}),
         Written(config={"timesteps": {"t_min": 0.0}}, metrics={"timesteps.t_min": late(0.01, 0.5)}),
         "timesteps.t_min: 0 -> shift(0.3)"),
    Case("blurred-outputs", "problem",
         Written(curves={"edge_density": (0.3, 0.1)}), Written(curves={"edge_density": (0.3, 0.25)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("blurred-outputs", "warning",  # no evaluations: the rollouts' own
         Written(curves=None, metrics={"statistics.edge_density": late(0.2, 0.08)}),
         Written(curves=None, metrics={"statistics.edge_density": late(0.2, 0.12)})),
    Case("artefacts", "warning",
         Written(curves={"edge_density": (0.2, 0.21), "finer_sharpness": (0.2, 0.28)}),
         Written(curves={"edge_density": (0.2, 0.21), "finer_sharpness": (0.2, 0.22)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("few-step-artefacts", "problem",
         Written(curves={"step_disagreement": (0.1, 0.2)}), Written(curves={"step_disagreement": (0.2, 0.1)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("random-sampler", "warning",
         Written(config={"rollout": {"sampler": "flow-sde"}}), Written(config={"rollout": {"sampler": "flow-euler"}}),
         "rollout.sampler: flow-sde -> flow-dpmpp"),
    Case("random-sampler", "problem",  # and the reward stands still
         Written(config={"rollout": {"sampler": "flow-cps"}}, metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}),
         Written(metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}),
         "rollout.sampler: flow-cps -> flow-dpmpp"),
    Case("group-size-small", "warning", Written(config=sized(7)), Written(config=sized(8)),
         "rollout.group_size: 7 -> 16"),
    Case("group-size-small", "problem", Written(config=sized(2, groups=48)), Written(config=sized(8)),
         "rollout.groups: 48 -> 6"),
    Case("zero-variance-groups", "problem",
         Written(metrics={"zero_variance_groups": 7, "reward.mean": lambda i: 0.04 + 0.0005 * i}),
         Written(metrics={"zero_variance_groups": 4, "reward.mean": lambda i: 0.04 + 0.0005 * i}),
         "rollout.group_size: 12 -> 24"),
    Case("zero-variance-groups", "warning",
         Written(metrics={"zero_variance_groups": 5}), Written(metrics={"zero_variance_groups": 4}),
         "rollout.group_size: 12 -> 24"),
    Case("prompts-solved", "note",
         Written(metrics={"zero_variance_groups": late(1, 6), "reward.mean": lambda i: 0.7 + 0.005 * i}),
         Written(metrics={"zero_variance_groups": late(1, 6), "reward.mean": lambda i: 0.4 + 0.005 * i})),
    Case("members-not-learnt-from", "note",
         Written(config={"weighting": "best-vs-worst"}, metrics={"optimised_members": 64, "skipped_members": 320}),
         Written(config={"weighting": "best-vs-worst"}, metrics={"optimised_members": 320, "skipped_members": 64}),
         "weighting: best-vs-worst -> abs-advantage"),
    Case("sigmoid-near-zero", "problem",
         Written(config={"objective": {"beta": 1000.0}}, metrics={"sigmoid": late(0.3, 0.004)}),
         Written(config={"objective": {"beta": 1000.0}}, metrics={"sigmoid": late(0.3, 0.07)}),
         "objective.beta: 1000 -> 100"),
    Case("sigmoid-near-zero", "warning",
         Written(metrics={"sigmoid": late(0.3, 0.04)}), Written(metrics={"sigmoid": late(0.3, 0.07)}),
         "objective.beta: 20 -> 2"),
    Case("sigmoid-near-one", "warning",
         Written(metrics={"sigmoid": 0.95}), Written(metrics={"sigmoid": 0.85}),
         "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("sigmoid-all-or-nothing", "warning",
         Written(config={"objective": {"beta": 1e6}}, metrics={"sigmoid": whole}),
         Written(config={"objective": {"beta": 1e6}}, metrics={"sigmoid": lambda i: whole(i) + 0.01 * (i > 1)}),
         "objective.beta: 1e+06 -> 100"),
    Case("sigmoid-idle", "note",
         Written(metrics={"sigmoid": lambda i: 0.5 + 0.001 * wave(i)}),
         Written(metrics={"sigmoid": lambda i: 0.5 + 0.02 * wave(i)}),
         "objective.beta: 20 -> 200"),
    Case("clip-fraction-high", "problem",
         Written(metrics={"clip_fraction": 0.95}), Written(metrics={"clip_fraction": 0.45}),
         "objective.clip: 0.01 -> 0.1"),
    Case("clip-fraction-high", "warning",
         Written(metrics={"clip_fraction": 0.6}), Written(metrics={"clip_fraction": late(0.9, 0.2)}),
         "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("residual-large", "warning",
         Written(config={"weighting": "uniform"}, metrics={"residual": 5.0}),
         Written(config={"weighting": "uniform"}, metrics={"residual": 1.0}),
         "advantages.balance: false -> true"),
    Case("weights-not-moving", "problem",
         Written(config={"optimiser": {"learning_rate": 1e-9}}, metrics={**CREEPING, "kl": 1e-13}),
         Written(config={"optimiser": {"learning_rate": 1e-9}}, metrics={**CREEPING, "kl": 1e-3}),
         "optimiser.learning_rate: 1e-09 -> 0.0003"),
    Case("weights-not-moving", "problem",  # the log has no kl: the norm alone
         Written(metrics={"change_norm": lambda i: 1e-7 * i, "kl": None}),
         Written(metrics={"change_norm": lambda i: 1e-4 * i, "kl": None}),
         "optimiser.learning_rate: 0.003 -> 0.009"),
    Case("no-updates", "problem",
         Written(metrics={"updates": 0}), Written(metrics={"updates": lambda i: i // 2})),
    Case("updates-skipped", "problem",
         Written(metrics={"skipped_updates": lambda i: i // 4}), Written(metrics={"skipped_updates": 0}),
         "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("updates-skipped", "warning",
         Written(config={"precision": {"autocast": "bf16"}}, metrics={"skipped_updates": 2}), Written(),
         "precision.autocast: bf16 -> no"),
    Case("gradient-growing", "warning",
         Written(metrics={"grad_norm": lambda i: 0.01 * 1.15**i}),
         Written(metrics={"grad_norm": lambda i: 0.01 * 1.05**i}),
         "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("gradient-always-clipped", "note",
         Written(metrics={"grad_norm": lambda i: 4 + wave(i)}), Written(metrics={"grad_norm": lambda i: 1 + wave(i)}),
         "optimiser.max_grad_norm: 1 -> 10"),
    Case("reward-not-rising", "warning",
         Written(metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}),
         Written(metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i) + 0.003 * i}),
         "optimiser.learning_rate: 0.003 -> 0.009"),
    Case("reward-falling", "problem",
         Written(metrics={"reward.mean": lambda i: 0.6 + 0.03 * wave(i) - 0.005 * i}),
         Written(metrics={"reward.mean": lambda i: 0.6 + 0.03 * wave(i)}),
         "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("reward-levelled-off", "note",
         Written(n=90, metrics={"reward.mean": lambda i: 0.3 + 0.01 * min(i, 40) + 0.03 * wave(i)}),
         Written(n=90, metrics={"reward.mean": lambda i: 0.3 + 0.004 * i + 0.03 * wave(i)})),
    Case("scores-missing", "problem",
         Written(metrics={"missing_rewards": 20}), Written(metrics={"missing_rewards": 0}),
         "scoring.max_missing: 0.2 -> 0.05"),
    Case("scores-missing", "warning", Written(metrics={"missing_rewards": 4}), Written()),
    Case("scores-missing", "note", Written(metrics={"missing_rewards": late(0, 1, 28)}), Written()),
    Case("reward-constant", "problem",
         Written(metrics={"rewards.brightness.std": 0.0}),
         Written(metrics={"rewards.brightness.std": late(0.0, 1e-3)})),
    Case("reward-constant", "warning",
         Written(config={"rewards": TWO_REWARDS}, metrics=second(0.0)),
         Written(config={"rewards": TWO_REWARDS}, metrics=second(0.1)),
         "rewards.1.weight: 1 -> 0"),
    Case("one-reward-dominates", "warning",
         Written(config={"rewards": TWO_REWARDS}, metrics=second(0.02)),
         Written(config={"rewards": TWO_REWARDS}, metrics=second(0.05)),
         "scoring.aggregation: weighted-sum -> group-normalised"),
    Case("reward-at-its-top", "note",
         Written(metrics={"reward.mean": lambda i: min(0.985, 0.5 + 0.05 * i)}),
         Written(metrics={"reward.mean": lambda i: min(0.97, 0.5 + 0.016 * i)})),
    Case("reward-at-its-bottom", "warning",
         Written(metrics={"reward.mean": lambda i: 0.0005 * i}), Written(metrics={"reward.mean": lambda i: 0.002 * i})),
    Case("waiting-for-scores", "note", Written(waiting=0.4), Written(waiting=0.2),
         "rewards.0.worker: null -> {count: 2}"),
    Case("reward-hacking", "problem",
         Written(curves={"gloom": (0.6, 0.5)}), Written(curves={"gloom": (0.6, 0.58)}),
         "evaluation.guards.alarm: log -> stop"),
    Case("reward-hacking", "problem",
         Written(curves={"saturation": (0.4, 0.7)}), Written(curves={"saturation": (0.4, 0.5)}),
         "objective.kl: 0.02 -> 0.04"),
    Case("guard-left-its-band", "warning",
         Written(curves={"brightness": (0.4, 0.39), "gloom": (0.6, 0.5)}),
         Written(curves={"brightness": (0.4, 0.39), "gloom": (0.6, 0.7)})),
    Case("diversity-collapse", "problem",
         Written(curves={"diversity": (0.3, 0.2)}), Written(curves={"diversity": (0.3, 0.24)}),
         "objective.kl: 0.02 -> 0.04"),
    Case("diversity-collapse", "problem",  # evaluations measure none: that of the training groups
         Written(metrics={"diversity": late(0.2, 0.14)}), Written(metrics={"diversity": late(0.2, 0.16)})),
    Case("overfitting", "problem",
         Written(curves={"brightness": (0.4, 0.7, 0.6)}), Written(curves={"brightness": (0.4, 0.7, 0.67)}),
         "objective.kl: 0.02 -> 0.04"),
    Case("held-out-falling", "problem",
         Written(curves={"brightness": (0.4, 0.7, 0.6)}, metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}),
         Written(curves={"brightness": (0.4, 0.7, 0.6)})),
    Case("nothing-held-out", "note",
         Written(config={"prompts": {"heldout": None}, "evaluation": {"every": 0}}, curves=None), Written()),
    Case("reference-drift", "problem", Written(metrics={"kl": 0.6}), Written(metrics={"kl": 0.2}),
         "objective.kl: 0.02 -> 0.04"),
    Case("reference-drift", "warning",
         Written(metrics={"kl": 0.3}), Written(metrics={"kl": 0.24}), "optimiser.learning_rate: 0.003 -> 0.001"),
    Case("reference-drift", "problem",  # as far as that, and the held-out score has fallen
         Written(metrics={"kl": 0.3}, curves={"brightness": (0.4, 0.7, 0.5)}),
         Written(metrics={"kl": 0.2}, curves={"brightness": (0.4, 0.7, 0.5)})),
    Case("reference-drift", "warning",  # nothing holds it
         Written(config={"objective": {"kl": 0.0}}, metrics={"kl": 0.15}),
         Written(config={"objective": {"kl": 0.0}}, metrics={"kl": 0.1}),
         "objective.kl: 0 -> 0.001"),
    Case("reference-drift", "warning",  # it doubles and doubles
         Written(metrics={"kl": lambda i: 0.003 * 1.17**i}), Written(metrics={"kl": lambda i: 0.08 + 0.003 * i})),
    Case("reference-drift", "warning", Written(metrics={"dsm": 0.8}), Written(metrics={"dsm": 0.6})),
    Case("run-failed", "problem", Written(outcome="failed"), Written()),
    Case("run-interrupted", "note", Written(outcome="interrupted"), Written()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id}-{case.severity}")
def test_every_sign_is_seen_and_its_absence_too(
    case: Case, examine: Callable[[Written], Diagnosis], tmp_path: Path
) -> None:
    sick = examine(case.sick)
    finding = found(sick)[case.id]
    assert finding.severity == case.severity
    assert finding.title.endswith(".")
    assert finding.why.endswith(".")
    assert all(".jsonl" in line or "config.yaml" in line or "outcome.json" in line for line in finding.evidence[:1])
    assert not case.change or case.change in map(str, finding.changes)
    assert finding.changes or finding.advice or case.id in ("no-updates",)
    assert case.id not in found(examine(case.sound))
    # What is suggested can be written into the run file, and changes it.
    file = sick.run.data.path / "config.yaml"
    before, after = load_run_config(file), load_run_config(file, [change.argument for change in finding.changes])
    assert (before != after) == bool(finding.changes)


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 48])
def test_never_a_single_group(
    groups: int, size: int, updates: int, tmp_path: Path, registry: Registry, examine: Callable[[Written], Diagnosis]
) -> None:
    """Two at least, fewer than there were, as many as the updates divide; and what it costs is told as it is."""
    if groups % updates:
        return
    config = {**sized(size, groups=groups), "optimiser": {"updates": updates}}
    finding = found(examine(Written(config=config, curves=None)))["group-size-small"]
    changes = {change.key: change.suggested for change in finding.changes}
    fewer = changes.pop("rollout.groups", groups)
    assert changes == {"rollout.group_size": 16}
    assert 2 <= fewer < groups or fewer == groups
    assert fewer % updates == 0
    (advice,) = finding.advice
    if "stay about as many" in advice:
        assert 0.5 <= 16 * fewer / (size * groups) <= 1.25
    else:
        assert advice.startswith(f"an iteration then has {16 * fewer} samples instead of {size * groups}")


EXTREME: dict[str, Any] = {
    "objective": {"clip": 0.5, "kl": 0.0, "beta": 1e-6},
    "optimiser": {"learning_rate": 1e-12, "max_grad_norm": 1e-9},
    "timesteps": {"count": 1, "t_min": 0.0, "t_max": 0.05},
    "rewards": [{"use": "brightness", "worker": {"count": 64}}],
}
SICK: dict[str, Value] = {
    "clip_fraction": 0.95, "sigmoid": 0.999, "kl": 0.9, "grad_norm": 5.0, "zero_variance_groups": 7,
    "diversity": late(0.2, 0.01), "reward.mean": lambda i: 0.5 - 0.01 * i, "skipped_updates": 9,
    "missing_rewards": 20, "residual": 9.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [EXTREME, {**EXTREME, "rewards": [{"use": "brightness", "service": {"urls": ["http://x"], "concurrency": 64}}]}],
)
def test_suggestions_are_settings_that_a_run_file_may_have(
    config: dict[str, Any], examine: Callable[[Written], Diagnosis]
) -> None:
    """At the ends of what settings allow, where computed remedies would leave their ranges or change nothing."""
    diagnosis = examine(Written(config=config, metrics=SICK, waiting=0.9))
    assert len(diagnosis.findings) > 5
    file = diagnosis.run.data.path / "config.yaml"
    before = load_run_config(file)
    for finding in diagnosis.findings:
        for number in range(len(finding.changes)):
            changed = [change.argument for change in finding.changes[: number + 1]]
            assert load_run_config(file, changed) != load_run_config(file, changed[:-1])
    assert load_run_config(file) == before
    suggested = {change.key for finding in diagnosis.findings for change in finding.changes}
    assert "objective.clip" not in suggested
    assert not [key for key in suggested if key.startswith("rewards.0.")]
    assert "optimiser.learning_rate" in suggested


def test_a_reward_that_never_varies_is_not_weighed_up(examine: Callable[[Written], Diagnosis]) -> None:
    for std, told in ((1e-12, False), (0.01, True)):
        diagnosis = examine(Written(config={"rewards": TWO_REWARDS}, metrics=second(std)))
        advice = found(diagnosis)["one-reward-dominates"].advice
        assert any("weigh it up" in line for line in advice) is told


def test_all_weights_are_not_trained_at_a_lora_s_rate(tmp_path: Path, known: Registry) -> None:
    flat = {"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}
    run = Written(config={"optimiser": {"learning_rate": 1e-5}}, metrics=flat).write(tmp_path / "full")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["backbone"]["train"] = "full"
    del config["backbone"]["lora"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    changes = found(diagnose(read_facts(run, known)))["reward-not-rising"].changes
    assert [str(change) for change in changes] == ["optimiser.learning_rate: 1e-05 -> 3e-05"]


def test_what_only_the_paper_reports_is_said_to_be_its_report(examine: Callable[[Written], Diagnosis]) -> None:
    sick = Written(config={"rollout": {"sampler": "flow-sde", "group_size": 4}, "timesteps": {"t_min": 0.0}})
    for name in ("random-sampler", "t-min-too-low"):
        why = found(examine(sick))[name].why
        assert "The paper reports" in why
        assert "docs/experiments/e" in why


@pytest.mark.parametrize(
    "sound",
    [Written(), Written(n=90), Written(n=12), Written(curves=None), Written(config={"objective": {"clip": None}})],
)
def test_a_sound_run_has_no_findings(sound: Written, examine: Callable[[Written], Diagnosis]) -> None:
    diagnosis = examine(sound)
    assert found(diagnosis) == {}
    assert len([e for e in diagnosis.examinations if e.fine]) > 12
    assert all(bool(e.fine) + bool(e.open) + bool(e.findings) <= 1 for e in diagnosis.examinations)


def test_causes_stand_before_what_they_cause(examine: Callable[[Written], Diagnosis]) -> None:
    falling = {"reward.mean": lambda i: 0.6 - 0.005 * i, "kl": lambda i: 0.02 * i, "grad_norm": lambda i: 0.01 * 1.2**i}
    diagnosis = examine(Written(metrics=falling, curves={"brightness": (0.5, 0.6, 0.3), "diversity": (0.3, 0.1)}))
    assert [finding.id for finding in diagnosis.findings] == [
        "reference-drift", "held-out-falling", "diversity-collapse", "reward-falling", "gradient-growing",
    ]  # fmt: skip
    assert [diagnosis.count(severity) for severity in ("problem", "warning", "note")] == [4, 1, 0]


def test_a_young_run_is_not_judged(examine: Callable[[Written], Diagnosis]) -> None:
    young = Written(n=2, curves=None, metrics={"kl": 9.0, "sigmoid": 0.0, "zero_variance_groups": 8, "diversity": 0.0})
    diagnosis = examine(young)
    assert found(diagnosis) == {}
    early = {e.subject: e.open for e in diagnosis.examinations if e.open}
    assert early["sigmoid"] == "2 iterations, 9 wanted"
    assert {"drift", "weights", "reward trend", "equal rewards", "guards", "held-out score"} <= set(early)


def test_a_long_run_is_given_time(examine: Callable[[Written], Diagnosis]) -> None:
    flat = {"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}
    assert "reward-not-rising" in found(examine(Written(metrics=flat)))
    planned = examine(Written(metrics=flat, config={"run": {"iterations": 2000}}))
    assert "reward-not-rising" not in found(planned)
    assert {e.subject: e.open for e in planned.examinations}["reward trend"] == "30 iterations, 200 wanted"


def test_a_warm_up_is_waited_for(examine: Callable[[Written], Diagnosis]) -> None:
    still = {"change_norm": 17.0, "kl": 0.0}
    assert "weights-not-moving" in found(examine(Written(metrics=still)))
    assert found(examine(Written(metrics=still, config={"optimiser": {"warmup": 100}}))) == {}


def test_a_reference_that_follows_tells_no_distance(examine: Callable[[Written], Diagnosis]) -> None:
    """Under a dynamic reference kl is next to nothing however far the weights have gone."""
    near = {"kl": 1e-9, "change_norm": 17.0}
    assert "weights-not-moving" in found(examine(Written(metrics=near)))
    older = {**near, "change_norm": lambda i: 17.0 + 1e-5 * i}  # logs of older versions have the norm of all weights
    assert "weights-not-moving" in found(examine(Written(metrics=older)))
    moving = {**near, "change_norm": lambda i: 17.0 + 1e-4 * i}
    assert found(examine(Written(metrics=moving, config={"objective": {"reference": "ema"}}))) == {}


def test_objectives_that_learn_from_the_path_want_a_random_sampler(tmp_path: Path, registry: Registry) -> None:
    """As the plugins declare; where they are not installed, nothing is said of them."""
    grpo = {"rollout": {"sampler": "flow-sde"}, "objective": {"use": "flow-grpo", "switch": None}}
    grpo |= {"timesteps": {"use": "sampler-steps", "t_min": 0.0}}
    right = Written(config=grpo).write(tmp_path / "right")
    accident = Written(config={"rollout": {"sampler": "flow-sde"}}).write(tmp_path / "accident")
    assert not {"random-sampler", "t-min-too-low"} & set(found(diagnose(read_facts(right, registry))))
    assert "declares" in found(diagnose(read_facts(accident, registry)))["random-sampler"].evidence[0]
    for run in (right, accident):
        unknown = diagnose(read_facts(run, Registry(discover=False)))
        assert not {"random-sampler", "t-min-too-low"} & set(found(unknown))
        assert {e.subject: e.open for e in unknown.examinations}["sampler"] == "flow-sde is not installed here"


@pytest.mark.parametrize(
    ("sampler", "steps", "shift", "expected"),
    # An even grid of n steps ends with a step from 1/n (DPM-Solver++) or 1/(n - 1) (Euler), shifted.
    [
        (FlowDPMSolverPP, 10, 3.0, 3 * 0.1 / 1.2),
        (FlowDPMSolverPP, 40, 3.0, 3 * 0.025 / 1.05),
        (FlowEuler, 8, 2.0, 2 / 7 / (1 + 1 / 7)),
        (FlowEuler, 3, 1.0, 0.5),
    ],
)
def test_the_smallest_time_that_steps_resolve(sampler: Any, steps: int, shift: float, expected: float) -> None:
    times = sampler(None).sigmas(steps, Schedule(shift)).tolist()
    assert resolved_sigma(times) == pytest.approx(expected, abs=3e-3)


def test_a_shift_that_was_the_models_is_known_from_run_json_alone(tmp_path: Path, known: Registry) -> None:
    auto = Written(config={"rollout": {"shift": "auto"}, "timesteps": {"t_min": 0.0}})

    def examined(name: str, record: dict[str, Any]) -> Diagnosis:
        run = auto.write(tmp_path / name)
        (run / "run.json").write_text(json.dumps(record))
        return diagnose(read_facts(run, known))

    for name, record in (("old", {}), ("odd", {"times": {"shift": -1, "t_min": "x"}})):
        silent = examined(name, record)
        assert "t-min-too-low" not in found(silent)
        assert any("run.json does not say which shift the model has" in one.open for one in silent.examinations)
    sigmas = FlowEuler(None).sigmas(8, Schedule(2.0)).tolist()
    finding = found(examined("new", {"times": {"shift": 2.0, "t_min": 0.0, "t_max": 1.0, "sigmas": sigmas}}))[
        "t-min-too-low"
    ]
    assert finding.severity == "problem"
    assert any("at shift 2: below it" in line for line in finding.evidence)
    assert [str(change) for change in finding.changes] == ["timesteps.t_min: 0 -> shift(0.3)"]


def test_sampler_steps_never_fall_below_the_last_of_dpm(examine: Callable[[Written], Diagnosis]) -> None:
    discrete = {"use": "sampler-steps", "t_min": 0.1}
    assert "t-min-too-low" not in found(examine(Written(config={"timesteps": discrete})))
    euler = Written(config={"timesteps": discrete | {"t_min": 0.001}, "rollout": {"sampler": "flow-euler"}})
    assert found(examine(euler))["t-min-too-low"].severity == "problem"


def test_a_raised_t_min_leaves_enough_of_the_samplers_steps(examine: Callable[[Written], Diagnosis]) -> None:
    section = {"use": "sampler-steps", "count": 4, "t_min": "shift(0.6)"}
    blurred = examine(Written(config={"timesteps": section}, curves={"edge_density": (0.3, 0.1)}))
    assert list(map(str, found(blurred)["blurred-outputs"].changes)) == [
        "timesteps.t_min: shift(0.6) -> shift(0.7)",
        "timesteps.count: 4 -> 3",  # 0.999, 0.964, 0.922, 0.872 ... of which 0.874 cuts the fourth off
    ]


def test_mann_kendall_against_scipy() -> None:
    generator = np.random.default_rng(0)
    for slope in (-0.02, 0.0, 0.02):
        values = slope * np.arange(30) + generator.normal(size=30)
        n, z = len(values), Series(np.arange(30.0), values).trend()
        tau = kendalltau(np.arange(n), values).statistic
        assert z == pytest.approx(tau * n * (n - 1) / 2 / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))
    assert Series(np.arange(30.0), np.ones(30)).trend() == 0


# -- how a run ended, and its logs -----------------------------------------------------------------------------------


def test_a_run_that_goes_on_and_one_that_was_killed(tmp_path: Path, known: Registry) -> None:
    run = Written(n=12, outcome=None, config={"run": {"iterations": 50}}).write(tmp_path / "run")
    (run / ".lock").touch()
    killed = found(diagnose(read_facts(run, known)))["run-killed"]
    assert killed.severity == "warning"
    assert killed.advice == (f"dgpo train {run}/config.yaml --resume  goes on from the last checkpoint, bit for bit",)
    with (run / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = read_facts(run, known)
        assert (facts.state, found(diagnose(facts))) == ("running", {})


def test_lines_that_are_not_there_are_told(tmp_path: Path, known: Registry) -> None:
    run = Written().write(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4], lines[9] = lines[4][:40], '{"iteration": "x"}'
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    finding = found(diagnose(read_facts(run, known)))["logs-incomplete"]
    assert list(finding.evidence) == [
        "2 of 30 lines of metrics.jsonl could not be understood.",
        "metrics.jsonl has no line of iteration 5, 10",
    ]


def test_logs_of_older_runs_are_read_as_far_as_they_go(tmp_path: Path, known: Registry) -> None:
    run = Written().write(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{"iteration": line["iteration"], "reward": line["reward"]} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run / "timings.jsonl").unlink()
    assert found(diagnose(read_facts(run, known))) == {}


# -- the command -----------------------------------------------------------------------------------------------------


def test_command_tells_of_a_sick_run_and_what_to_try(
    dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Written(config={"timesteps": {"t_min": 0.0}}).write(Path("runs/sick"))
    done = dgpo("doctor", "runs/sick")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "runs/sick: 30 of 30 iterations, complete; 2 evaluations"
    assert lines[2] == "PROBLEM  The training times are not clipped from below.  [t-min-too-low]"
    assert "  change  timesteps.t_min: 0 -> shift(0.3)" in lines
    assert "  seen    times are drawn from sigma 0 on (config.yaml)" in lines
    assert "1 problem, no warning, no note" in lines
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines[:-1])
    assert lines[-2] == "try the first:"
    words = shlex.split(lines[-1])
    assert words[:3] == ["dgpo", "train", "runs/sick/config.yaml"]
    checked = dgpo("validate", *words[2:])
    assert checked.code == 0
    assert checked.out.splitlines()[1].startswith("  sick-2: ")
    assert "sigma in [0.5625, 1]" in checked.out


def test_command_on_several_runs_in_json_and_strict(dgpo: Run, tmp_path: Path) -> None:
    sound, sick = tmp_path / "sound", tmp_path / "sick"
    Written().write(sound)
    Written(config={"timesteps": {"t_min": 0.0}}, metrics={"clip_fraction": 0.6}).write(sick)
    done = dgpo("doctor", sound, sick, "--json")
    assert done.code == 0
    first, second = json.loads(done.out)
    assert (first["run"], first["findings"], first["state"]) == (str(sound), [], "complete")
    assert {"subject": "group size", "text": "G = 12"} in first["fine"]
    assert [(one["id"], one["severity"]) for one in second["findings"]] == [
        ("t-min-too-low", "problem"),
        ("clip-fraction-high", "warning"),
    ]
    assert second["findings"][0]["changes"] == [
        {"key": "timesteps.t_min", "present": 0.0, "suggested": "shift(0.3)", "set": "timesteps.t_min=shift(0.3)"}
    ]
    assert dgpo("doctor", sound, "--strict").code == 0
    strict = dgpo("doctor", sound, sick, "--strict")
    assert strict.code == 1
    assert strict.out.count(" of 30 iterations, complete") == 2
    assert dgpo("doctor", sound).out.splitlines()[-1] == "no problem, no warning, no note"


def test_a_warning_is_not_a_problem_to_strict(dgpo: Run, tmp_path: Path) -> None:
    done = dgpo("doctor", Written(config=sized(7)).write(tmp_path / "run"), "--strict")
    assert done.code == 0
    assert "no problem, 1 warning, no note" in done.out


def test_refuses_what_is_no_run_in_one_line(dgpo: Run, tmp_path: Path) -> None:
    sound = Written().write(tmp_path / "sound")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "plan.json").write_text("{}")
    silent = Written().write(tmp_path / "silent")
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        (silent / log).write_text("not json\n")
    binary = Written().write(tmp_path / "binary")
    (binary / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    for name, message in (
        ("missing", "there is no such run directory"),
        ("empty", "not a run directory (it has no config.yaml)"),
        ("silent", "nothing is logged yet: no iteration and no evaluation has finished"),
        ("binary", "cannot be read"),
        ("ablation", f"an ablation's directory; its runs are in {tmp_path}/ablation/cells/VARIANT/seed-N"),
    ):
        done = dgpo("doctor", sound, tmp_path / name)
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1
        assert str(tmp_path / name) in done.err
        assert message in done.err


def test_command_is_light_to_import() -> None:
    heavy = ("torch", "rich", "numpy", "yaml")
    code = f"import sys, dgpo_lab.commands.doctor; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (False, "false"), (3e-4, "0.0003"), (1e6, "1e+06"), (4, "4"), ({"count": 2}, "{count: 2}")],
)
def test_values_are_written_as_run_files_read_them(value: Any, text: str) -> None:
    assert written(value) == text
    assert Change("a.b", value, value).argument == f"a.b={text}"


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.043, "4.3 %"), (0.5, "50 %"), (3.69, "369 %")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_real_run_from_its_start_to_a_resume(dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer writes is what the doctor reads: nothing is left unsaid, and its commands work."""
    monkeypatch.chdir(tmp_path)
    sections: dict[str, Any] = {
        "run": {"iterations": 12},
        "rollout": {"steps": 10, "shift": 3.0, "group_size": 8},
        "timesteps": {"t_min": "shift(0.3)"},
        "objective": {"clip": None},
        "evaluation": {"every": 5, "samples_per_prompt": 2},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run_data("runs", **sections)))
    assert dgpo("train", "run.yaml", "--max-iterations", 4).code == 0
    (paused,) = json.loads(dgpo("doctor", "runs/toy", "--json").out)
    assert [finding["id"] for finding in paused["findings"]] == ["run-interrupted"]
    command = shlex.split(paused["findings"][0]["advice"][0])
    assert dgpo(*command[1 : command.index("--resume") + 1]).code == 0
    (done,) = json.loads(dgpo("doctor", "runs/toy", "--json", "--strict").out)
    assert (done["iterations"], done["state"], done["findings"]) == (12, "complete", [])
    assert {one["subject"] for one in done["fine"]} == {
        "ending", "logs", "missing scores", "constant rewards", "t_min", "skipped updates", "weights", "sigmoid",
        "equal rewards", "group size", "sampler", "drift", "guards", "held-out score", "diversity", "detail",
        "gradients", "residual", "zero weights", "range", "time",
    }  # fmt: skip
    assert [one["subject"] for one in done["too_early"]] == ["reward trend"]
    still = ("train", "run.yaml", "--set", "run.name=still", "--set", "optimiser.learning_rate=1e-9")
    assert dgpo(*still).code == 0
    (sick,) = json.loads(dgpo("doctor", "runs/still", "--json").out)
    assert [finding["id"] for finding in sick["findings"]] == ["weights-not-moving"]


def test_every_sign_has_its_line_in_the_document() -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    others = {"run-killed", "logs-incomplete"}
    for name in {case.id for case in CASES} | others:
        assert f"`{name}`" in page, name


def test_styles_cover_every_severity() -> None:
    assert set(telling.STYLES) == {"problem", "warning", "note"}
