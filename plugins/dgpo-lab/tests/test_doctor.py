"""`dgpo doctor`: every rule on a run that matches it, and on a similar run that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Schedule
from dgpo_lab.doctoring.diagnosis import Diagnosis, diagnose
from dgpo_lab.doctoring.facts import read_facts
from dgpo_lab.doctoring.outputs import resolved_sigma
from dgpo_lab.doctoring.trends import Series
from tests.doctored import (
    CREEPING,
    TWO_REWARDS,
    Value,
    Written,
    found,
    late,
    second,
    sized,
    wave,
    whole,
)


@dataclass(frozen=True)
class Case:
    """One rule: a run that matches it, a similar run that does not, and a change that must be suggested."""

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
    Case("t-min-too-low", "problem",  # with an adaptive timestep policy, the bound that it samples from counts
         Written(config={"timesteps": {"t_min": 0.0}}, metrics={"timesteps.t_min": late(0.5, 0.01)}),
         Written(config={"timesteps": {"t_min": 0.0}}, metrics={"timesteps.t_min": late(0.01, 0.5)}),
         "timesteps.t_min: 0 -> shift(0.3)"),
    Case("blurred-outputs", "problem",
         Written(curves={"edge_density": (0.3, 0.1)}), Written(curves={"edge_density": (0.3, 0.25)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("blurred-outputs", "warning",  # without evaluations, the statistics of the rollouts count
         Written(curves=None, metrics={"statistics.edge_density": late(0.2, 0.08)}),
         Written(curves=None, metrics={"statistics.edge_density": late(0.2, 0.12)})),
    Case("artifacts", "warning",
         Written(curves={"edge_density": (0.2, 0.21), "many_step_sharpness": (0.2, 0.28)}),
         Written(curves={"edge_density": (0.2, 0.21), "many_step_sharpness": (0.2, 0.22)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("few-step-artifacts", "problem",
         Written(curves={"step_disagreement": (0.1, 0.2)}), Written(curves={"step_disagreement": (0.2, 0.1)}),
         "timesteps.t_min: shift(0.3) -> shift(0.4)"),
    Case("random-sampler", "warning",
         Written(config={"rollout": {"sampler": "flow-sde"}}), Written(config={"rollout": {"sampler": "flow-euler"}}),
         "rollout.sampler: flow-sde -> flow-dpmpp"),
    Case("random-sampler", "problem",  # and the reward does not rise
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
    Case("members-not-learned-from", "note",
         Written(config={"weighting": "best-vs-worst"}, metrics={"optimized_members": 64, "skipped_members": 320}),
         Written(config={"weighting": "best-vs-worst"}, metrics={"optimized_members": 320, "skipped_members": 64}),
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
         "optimizer.learning_rate: 0.003 -> 0.001"),
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
         "optimizer.learning_rate: 0.003 -> 0.001"),
    Case("residual-large", "warning",
         Written(config={"weighting": "uniform"}, metrics={"residual": 5.0}),
         Written(config={"weighting": "uniform"}, metrics={"residual": 1.0}),
         "advantages.balance: false -> true"),
    Case("weights-not-moving", "problem",
         Written(config={"optimizer": {"learning_rate": 1e-9}}, metrics={**CREEPING, "kl": 1e-13}),
         Written(config={"optimizer": {"learning_rate": 1e-9}}, metrics={**CREEPING, "kl": 1e-3}),
         "optimizer.learning_rate: 1e-09 -> 0.0003"),
    Case("weights-not-moving", "problem",  # without kl in the log, the norm alone counts
         Written(metrics={"change_norm": lambda i: 1e-7 * i, "kl": None}),
         Written(metrics={"change_norm": lambda i: 1e-4 * i, "kl": None}),
         "optimizer.learning_rate: 0.003 -> 0.009"),
    Case("no-updates", "problem",
         Written(metrics={"updates": 0}), Written(metrics={"updates": lambda i: i // 2})),
    Case("updates-skipped", "problem",
         Written(metrics={"skipped_updates": lambda i: i // 4}), Written(metrics={"skipped_updates": 0}),
         "optimizer.learning_rate: 0.003 -> 0.001"),
    Case("updates-skipped", "warning",
         Written(config={"precision": {"autocast": "bf16"}}, metrics={"skipped_updates": 2}), Written(),
         "precision.autocast: bf16 -> no"),
    Case("gradient-growing", "warning",
         Written(metrics={"grad_norm": lambda i: 0.01 * 1.15**i}),
         Written(metrics={"grad_norm": lambda i: 0.01 * 1.05**i}),
         "optimizer.learning_rate: 0.003 -> 0.001"),
    Case("gradient-always-clipped", "note",
         Written(metrics={"grad_norm": lambda i: 4 + wave(i)}), Written(metrics={"grad_norm": lambda i: 1 + wave(i)}),
         "optimizer.max_grad_norm: 1 -> 10"),
    Case("reward-not-rising", "warning",
         Written(metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}),
         Written(metrics={"reward.mean": lambda i: 0.4 + 0.03 * wave(i) + 0.003 * i}),
         "optimizer.learning_rate: 0.003 -> 0.009"),
    Case("reward-falling", "problem",
         Written(metrics={"reward.mean": lambda i: 0.6 + 0.03 * wave(i) - 0.005 * i}),
         Written(metrics={"reward.mean": lambda i: 0.6 + 0.03 * wave(i)}),
         "optimizer.learning_rate: 0.003 -> 0.001"),
    Case("reward-leveled-off", "note",
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
         "scoring.aggregation: weighted-sum -> group-normalized"),
    Case("reward-at-its-top", "note",
         Written(metrics={"reward.mean": lambda i: min(0.985, 0.5 + 0.05 * i)}),
         Written(metrics={"reward.mean": lambda i: min(0.97, 0.5 + 0.016 * i)})),
    Case("reward-at-its-bottom", "warning",
         Written(metrics={"reward.mean": lambda i: 0.0005 * i}), Written(metrics={"reward.mean": lambda i: 0.002 * i})),
    Case("waiting-for-scores", "note", Written(waiting=0.4), Written(waiting=0.2),
         "rewards.0.worker: null -> {count: 2}"),
    Case("reward-hacking", "problem",
         Written(curves={"gloom": (0.6, 0.5)}), Written(curves={"gloom": (0.6, 0.58)}),
         "evaluation.monitors.alarm: log -> stop"),
    Case("reward-hacking", "problem",
         Written(curves={"saturation": (0.4, 0.7)}), Written(curves={"saturation": (0.4, 0.5)}),
         "objective.kl: 0.02 -> 0.04"),
    Case("monitor-out-of-tolerance", "warning",
         Written(curves={"brightness": (0.4, 0.39), "gloom": (0.6, 0.5)}),
         Written(curves={"brightness": (0.4, 0.39), "gloom": (0.6, 0.7)})),
    Case("diversity-collapse", "problem",
         Written(curves={"diversity": (0.3, 0.2)}), Written(curves={"diversity": (0.3, 0.24)}),
         "objective.kl: 0.02 -> 0.04"),
    Case("diversity-collapse", "problem",  # without evaluations of it, the diversity of the training groups counts
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
         Written(metrics={"kl": 0.3}), Written(metrics={"kl": 0.24}), "optimizer.learning_rate: 0.003 -> 0.001"),
    Case("reference-drift", "problem",  # the same distance, and the held-out score has fallen
         Written(metrics={"kl": 0.3}, curves={"brightness": (0.4, 0.7, 0.5)}),
         Written(metrics={"kl": 0.2}, curves={"brightness": (0.4, 0.7, 0.5)})),
    Case("reference-drift", "warning",  # without a KL term
         Written(config={"objective": {"kl": 0.0}}, metrics={"kl": 0.15}),
         Written(config={"objective": {"kl": 0.0}}, metrics={"kl": 0.1}),
         "objective.kl: 0 -> 0.001"),
    Case("reference-drift", "warning",  # the distance keeps doubling
         Written(metrics={"kl": lambda i: 0.003 * 1.17**i}), Written(metrics={"kl": lambda i: 0.08 + 0.003 * i})),
    Case("reference-drift", "warning", Written(metrics={"dsm": 0.8}), Written(metrics={"dsm": 0.6})),
    Case("run-failed", "problem", Written(outcome="failed"), Written()),
    Case("run-interrupted", "note", Written(outcome="interrupted"), Written()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id}-{case.severity}")
def test_every_rule_matches_and_does_not_match(
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
    # The suggested changes are valid in the run file, and they change it.
    file = sick.run.data.path / "config.yaml"
    before, after = load_run_config(file), load_run_config(file, [change.argument for change in finding.changes])
    assert (before != after) == bool(finding.changes)


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 48])
def test_a_single_group_is_never_suggested(
    groups: int, size: int, updates: int, tmp_path: Path, registry: Registry, examine: Callable[[Written], Diagnosis]
) -> None:
    """Suggests at least two groups, fewer than before and divisible by the updates, and states the cost correctly."""
    if groups % updates:
        return
    config = {**sized(size, groups=groups), "optimizer": {"updates": updates}}
    finding = found(examine(Written(config=config, curves=None)))["group-size-small"]
    changes = {change.key: change.suggested for change in finding.changes}
    fewer = changes.pop("rollout.groups", groups)
    assert changes == {"rollout.group_size": 16}
    assert 2 <= fewer < groups or fewer == groups
    assert fewer % updates == 0
    (advice,) = finding.advice
    if "stays about the same" in advice:
        assert 0.5 <= 16 * fewer / (size * groups) <= 1.25
    else:
        assert advice.startswith(f"an iteration then has {16 * fewer} samples instead of {size * groups}")


EXTREME: dict[str, Any] = {
    "objective": {"clip": 0.5, "kl": 0.0, "beta": 1e-6},
    "optimizer": {"learning_rate": 1e-12, "max_grad_norm": 1e-9},
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
def test_suggestions_are_valid_at_the_limits_of_settings(
    config: dict[str, Any], examine: Callable[[Written], Diagnosis]
) -> None:
    """Computed remedies that leave the range of a setting or change nothing are not suggested."""
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
    assert "optimizer.learning_rate" in suggested


def test_no_larger_weight_for_a_constant_reward(examine: Callable[[Written], Diagnosis]) -> None:
    for std, reported in ((1e-12, False), (0.01, True)):
        diagnosis = examine(Written(config={"rewards": TWO_REWARDS}, metrics=second(std)))
        advice = found(diagnosis)["one-reward-dominates"].advice
        assert any("increase the weight" in line for line in advice) is reported


def test_a_reward_of_which_ranks_count_dominates_no_other(examine: Callable[[Written], Diagnosis]) -> None:
    """Its large values do not; ranks of a group of 16 have a std of 0.288, whatever the values are."""
    for transform, std in ((None, 5.0), ("rank", 5.0), ("rank", 1e-6), (None, 1e-6)):
        second_reward = {**TWO_REWARDS[1], "transform": transform}
        run = Written(config={"rewards": [TWO_REWARDS[0], second_reward]}, metrics=second(std))
        assert ("one-reward-dominates" in found(examine(run))) is (transform is None)


def test_full_fine_tuning_does_not_get_the_learning_rate_for_lora(tmp_path: Path, known: Registry) -> None:
    flat = {"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}
    run = Written(config={"optimizer": {"learning_rate": 1e-5}}, metrics=flat).write(tmp_path / "full")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["backbone"]["train"] = "full"
    del config["backbone"]["lora"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    changes = found(diagnose(read_facts(run, known)))["reward-not-rising"].changes
    assert [str(change) for change in changes] == ["optimizer.learning_rate: 1e-05 -> 3e-05"]


def test_claims_of_the_paper_are_attributed_to_it(examine: Callable[[Written], Diagnosis]) -> None:
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


def test_causes_are_listed_before_their_effects(examine: Callable[[Written], Diagnosis]) -> None:
    falling = {"reward.mean": lambda i: 0.6 - 0.005 * i, "kl": lambda i: 0.02 * i, "grad_norm": lambda i: 0.01 * 1.2**i}
    diagnosis = examine(Written(metrics=falling, curves={"brightness": (0.5, 0.6, 0.3), "diversity": (0.3, 0.1)}))
    assert [finding.id for finding in diagnosis.findings] == [
        "reference-drift", "held-out-falling", "diversity-collapse", "reward-falling", "gradient-growing",
    ]  # fmt: skip
    assert [diagnosis.count(severity) for severity in ("problem", "warning", "note")] == [4, 1, 0]


def test_a_short_run_is_not_judged(examine: Callable[[Written], Diagnosis]) -> None:
    young = Written(n=2, curves=None, metrics={"kl": 9.0, "sigmoid": 0.0, "zero_variance_groups": 8, "diversity": 0.0})
    diagnosis = examine(young)
    assert found(diagnosis) == {}
    early = {e.subject: e.open for e in diagnosis.examinations if e.open}
    assert early["sigmoid"] == "2 iterations, 9 needed"
    assert {"drift", "weights", "reward trend", "equal rewards", "monitors", "held-out score"} <= set(early)


def test_a_long_run_gets_more_time(examine: Callable[[Written], Diagnosis]) -> None:
    flat = {"reward.mean": lambda i: 0.4 + 0.03 * wave(i)}
    assert "reward-not-rising" in found(examine(Written(metrics=flat)))
    planned = examine(Written(metrics=flat, config={"run": {"iterations": 2000}}))
    assert "reward-not-rising" not in found(planned)
    assert {e.subject: e.open for e in planned.examinations}["reward trend"] == "30 iterations, 200 needed"


def test_weights_are_not_judged_during_warmup(examine: Callable[[Written], Diagnosis]) -> None:
    still = {"change_norm": 17.0, "kl": 0.0}
    assert "weights-not-moving" in found(examine(Written(metrics=still)))
    assert found(examine(Written(metrics=still, config={"optimizer": {"warmup": 100}}))) == {}


def test_kl_to_a_dynamic_reference_does_not_count_as_standing_still(examine: Callable[[Written], Diagnosis]) -> None:
    """With a dynamic reference, kl is almost 0 however far the weights have moved."""
    near = {"kl": 1e-9, "change_norm": 17.0}
    assert "weights-not-moving" in found(examine(Written(metrics=near)))
    older = {**near, "change_norm": lambda i: 17.0 + 1e-5 * i}  # older versions log the norm of all weights
    assert "weights-not-moving" in found(examine(Written(metrics=older)))
    moving = {**near, "change_norm": lambda i: 17.0 + 1e-4 * i}
    assert found(examine(Written(metrics=moving, config={"objective": {"reference": "ema_fast"}}))) == {}


def test_objectives_that_train_on_the_path_require_a_stochastic_sampler(tmp_path: Path, registry: Registry) -> None:
    """The plugins declare it; plugins that are not installed are not judged."""
    grpo = {"rollout": {"sampler": "flow-sde"}, "objective": {"use": "flow-grpo", "ema_rollouts_after": None}}
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
def test_smallest_sigma_that_a_sampler_resolves(sampler: Any, steps: int, shift: float, expected: float) -> None:
    times = sampler(None).sigmas(steps, Schedule(shift)).tolist()
    assert resolved_sigma(times) == pytest.approx(expected, abs=3e-3)


def test_the_shift_of_the_model_is_read_from_run_json(tmp_path: Path, known: Registry) -> None:
    auto = Written(config={"rollout": {"shift": "auto"}, "timesteps": {"t_min": 0.0}})

    def examined(name: str, record: dict[str, Any]) -> Diagnosis:
        run = auto.write(tmp_path / name)
        (run / "run.json").write_text(json.dumps(record))
        return diagnose(read_facts(run, known))

    for name, record in (("old", {}), ("odd", {"times": {"shift": -1, "t_min": "x"}})):
        unknown = examined(name, record)
        assert "t-min-too-low" not in found(unknown)
        assert any("run.json does not record the model's shift" in each.open for each in unknown.examinations)
    sigmas = FlowEuler(None).sigmas(8, Schedule(2.0)).tolist()
    finding = found(examined("new", {"times": {"shift": 2.0, "t_min": 0.0, "t_max": 1.0, "sigmas": sigmas}}))[
        "t-min-too-low"
    ]
    assert finding.severity == "problem"
    assert any("at shift 2 resolves sigma down to" in line for line in finding.evidence)
    assert [str(change) for change in finding.changes] == ["timesteps.t_min: 0 -> shift(0.3)"]


def test_sampler_steps_are_not_below_the_last_step_of_dpmpp(examine: Callable[[Written], Diagnosis]) -> None:
    discrete = {"use": "sampler-steps", "t_min": 0.1}
    assert "t-min-too-low" not in found(examine(Written(config={"timesteps": discrete})))
    euler = Written(config={"timesteps": discrete | {"t_min": 0.001}, "rollout": {"sampler": "flow-euler"}})
    assert found(examine(euler))["t-min-too-low"].severity == "problem"


def test_a_higher_t_min_also_reduces_the_count_of_sampler_steps(examine: Callable[[Written], Diagnosis]) -> None:
    section = {"use": "sampler-steps", "count": 4, "t_min": "shift(0.6)"}
    blurred = examine(Written(config={"timesteps": section}, curves={"edge_density": (0.3, 0.1)}))
    # The sampler visits 0.999, 0.964, 0.922, 0.872, ...; shift(0.7) = 0.874 excludes the fourth.
    assert list(map(str, found(blurred)["blurred-outputs"].changes)) == [
        "timesteps.t_min: shift(0.6) -> shift(0.7)",
        "timesteps.count: 4 -> 3",
    ]


def test_mann_kendall_against_scipy() -> None:
    generator = np.random.default_rng(0)
    for slope in (-0.02, 0.0, 0.02):
        values = slope * np.arange(30) + generator.normal(size=30)
        n, z = len(values), Series(np.arange(30.0), values).trend()
        tau = kendalltau(np.arange(n), values).statistic
        assert z == pytest.approx(tau * n * (n - 1) / 2 / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))
    assert Series(np.arange(30.0), np.ones(30)).trend() == 0
