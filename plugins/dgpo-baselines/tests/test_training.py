"""Whole runs on the toy model: each objective learns, resumes exactly, and reports mistakes before the run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.loop import Loop
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Schedule
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig

SDE = {"sampler": "flow-sde", "steps": 5}
STEPS = {"use": "sampler-steps", "count": 3, "t_min": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "flow-grpo": {
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.01},
        "rollout": SDE,
        "timesteps": STEPS,
    },
    "flow-grpo, cps": {
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.0, "options": {"log_prob": "distance"}},
        "rollout": {"sampler": "flow-cps", "steps": 5},
        "timesteps": {"use": "sampler-steps", "count": 4, "t_min": 0.1},
    },
    "flow-grpo, two random steps": {
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.0},
        "rollout": {"sampler": {"use": "flow-sde", "options": {"random_to": 0.7}}, "steps": 5},
        "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
    },
    "flow-grpo, ratio_norm": {
        "objective": {
            "use": "flow-grpo",
            "ema_rollouts_after": None,
            "kl": 0.001,
            "options": {"ratio_norm": True, "clip": 0.01},
        },
        "rollout": SDE,
        "timesteps": STEPS,
        "optimizer": {"updates": 2},
    },
    "diffusion-dpo": {"objective": {"use": "diffusion-dpo", "beta": 100.0, "kl": 0.0}, "weighting": "best-vs-worst"},
    "diffusion-nft": {"objective": {"use": "diffusion-nft", "ema_rollouts_after": 0, "kl": 0.0}},
    "awm": {"objective": {"use": "awm", "clip": None, "kl": 0.0}},
    "crd": {"objective": {"use": "crd", "reference": "ema_fast", "kl": 0.0}},
    "elbo-pg": {
        "objective": {"use": "elbo-pg", "kl": 0.0, "options": {"scale": 1.0}},
        "advantages": {"std": "none"},
    },
    "regularized-dgpo": {
        "objective": {
            "use": "regularized-dgpo",
            "kl": 0.001,
            "options": {"trust_region": 0.01, "kl_from": 0.7, "adaptive": True},
        },
    },
    "flow-grpo, two passes, weighted": {
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.01},
        "rollout": SDE,
        "timesteps": STEPS | {"options": {"weights": "step-noise"}},
        "optimizer": {"passes": 2},
    },
    "crd, three passes": {
        "objective": {
            "use": "crd",
            "reference": "ema_fast",
            "kl": 0.0,
            "ema_fast": {"max_decay": 0.0, "per": "iteration"},
        },
        "optimizer": {"passes": 3},
    },
    "awm, clipped": {"objective": {"use": "awm", "clip": 0.5, "ema_rollouts_after": 0, "kl": 0.0}},
}

Make = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(name: str, **sections: dict[str, Any]) -> RunConfig:
        merged = dict(RUNS[name])
        for section, values in sections.items():
            merged[section] = merged.get(section, {}) | values
        return RunConfig.model_validate(run_data(tmp_path, **merged))

    return build


def logs(config: RunConfig, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / name).read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_objective_increases_the_reward(name: str, make: Make, registry: Registry) -> None:
    config = make(
        name,
        run={"iterations": 40},
        rollout={"groups": 6, "group_size": 8},
        optimizer={"learning_rate": 0.02},
        evaluation={"every": 0, "prompts": 6, "samples_per_prompt": 8, "model": "policy"},
        checkpoints={"every": 100},
    )
    assert Trainer(config, registry).train() == "finished"
    before, after = (r for r in logs(config, "evaluations.jsonl") if r["role"] == "target")
    assert after["low"] > before["high"]


@pytest.mark.parametrize("name", ["flow-grpo", "diffusion-nft", "awm", "elbo-pg"])
def test_a_reference_that_is_reset_is_the_kl_terms_model(name: str, make: Make, registry: Registry) -> None:
    """With one update an iteration, the policy is the reference whenever an iteration begins, and the KL term is 0."""
    reset = {"kl": 0.1, "reference": "reset", "reset": {"every": 1}}
    config = make(name, run={"iterations": 3}, objective=reset, optimizer={"updates": 1})
    Trainer(config, registry).train()
    assert [record["kl"] for record in logs(config)] == [0, 0, 0]
    frozen = make(name, run={"iterations": 3, "name": "frozen"}, objective={"kl": 0.1}, optimizer={"updates": 1})
    Trainer(frozen, registry).train()
    assert [record["kl"] > 0 for record in logs(frozen)] == [False, True, True]
    unused = make(name, run={"name": "unused"}, objective={"kl": 0.0, "reference": "reset"})
    with pytest.raises(UserError, match=r"objective.reference: reset has no effect on objective"):
        Trainer(unused, registry).build()


@pytest.mark.parametrize("name", RUNS)
def test_metrics_do_not_depend_on_micro_batches(name: str, make: Make, registry: Registry) -> None:
    found = []
    for run, rollout, optimize in (("a", None, None), ("b", 3, 3), ("c", 7, 100)):
        config = make(
            name,
            run={"name": run},
            rollout={"micro_batch": rollout},
            optimizer={"micro_batch": optimize, "learning_rate": 0.01},
            backbone={"options": {"double": True}},
        )
        Trainer(config, registry).train()
        found.append(logs(config))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            for key in ("dsm", "grad_norm", "change_norm", "diversity"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key
            assert mine["reward"]["mean"] == pytest.approx(theirs["reward"]["mean"], rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_bit_exact(name: str, make: Make, registry: Registry) -> None:
    config = make(name)
    Trainer(config, registry).train()
    wanted = fingerprint(config)
    for stop_after in (1, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert fingerprint(config) == wanted


def fingerprint(config: RunConfig) -> list[bytes]:
    path = run_path(config)
    weights = sorted(sorted((path / "checkpoints").iterdir())[-1].glob("*.safetensors"))
    return [f.read_bytes() for f in (path / "metrics.jsonl", path / "evaluations.jsonl", *weights)]


def test_only_random_steps_are_trained(make: Make, registry: Registry) -> None:
    """Times are in [t_min, t_max], without the last step of CPS, which has no density."""
    for name, low in (("flow-grpo", 0.1), ("flow-grpo, cps", 0.1), ("flow-grpo, two random steps", 0.7)):
        config = make(name, run={"name": f"n{low}"})
        engine = Trainer(config, registry).build()
        sigmas = engine.sampler.sigmas(5, Schedule(1.0)).tolist()
        Trainer(config, registry).train()
        for record in logs(config):
            assert {record["t_min"], record["t_max"]} <= set(sigmas)
            assert record["t_min"] >= low
        shutil.rmtree(run_path(config))
    cps = Trainer(make("flow-grpo, cps", timesteps={"t_min": 0.0}), registry).build()
    assert cps.training_sigmas.tolist() == [*cps.sampler.sigmas(5, Schedule(1.0))[:4].tolist(), 0.0]


def test_other_objectives_keep_no_path(make: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for name in ("flow-grpo", "awm"):
        trainer = Trainer(make(name, run={"name": name, "iterations": 1}), registry)
        groups = Loop(trainer.build(), trainer.state, trainer.store).sample_groups_and_score()
        kept.append(sum(path.states.shape[1] for path in groups.paths))
        trainer.close()
    assert kept == [16, 0]


@pytest.mark.parametrize(
    ("name", "sections", "complaint"),
    [
        (
            "flow-grpo",
            {"rollout": {"sampler": "flow-dpmpp"}},
            "rollout.sampler: flow-dpmpp is deterministic; use a random",
        ),
        ("flow-grpo", {"timesteps": {"use": "uniform"}}, "use a policy that draws these times, such as sampler-steps"),
        ("flow-grpo", {"timesteps": {"count": 6, "t_min": 0.0}}, "only 5 of the sampler's 5 lie in"),
        ("flow-grpo, cps", {"timesteps": {"count": 5, "t_min": 0.0}}, "only 4 of the sampler's 4 lie in"),
        ("flow-grpo", {"timesteps": {"shared_noise": False}}, "timesteps.shared_noise: has no effect with objective"),
        (
            "flow-grpo",
            {"objective": {"ema_rollouts_after": 200}},
            "objective.ema_rollouts_after: 200: flow-grpo compares with the policy that",
        ),
        ("flow-grpo", {"objective": {"clip": 0.2}}, "objective.clip: 0.2 has no effect on objective: flow-grpo"),
        ("flow-grpo", {"objective": {"beta": 5.0}}, "objective.beta: 5.0 has no effect on objective: flow-grpo"),
        (
            "diffusion-dpo",
            {"objective": {"clip": 0.2}},
            "objective.clip: 0.2 has no effect on objective: diffusion-dpo",
        ),
        (
            "diffusion-nft",
            {"objective": {"ema_rollouts_after": 200}},
            "objective.ema_rollouts_after: 200: diffusion-nft requires rollouts from the old policy",
        ),
        (
            "diffusion-nft",
            {"objective": {"beta": 1.0}},
            "objective.beta: 1.0 has no effect on objective: diffusion-nft",
        ),
        ("awm", {"objective": {"beta": 1.0}}, "objective.beta: 1.0 has no effect on objective: awm"),
        (
            "crd",
            {"objective": {"reference": "frozen"}},
            "objective.reference: frozen: crd compares with the old policy",
        ),
        ("crd", {"objective": {"clip": 0.2}}, "objective.clip: 0.2 has no effect on objective: crd"),
        ("elbo-pg", {"objective": {"reference": "ema_fast"}}, "objective.reference: ema_fast has no effect"),
        ("regularized-dgpo", {"objective": {"clip": 0.2}}, "objective.clip: 0.2 has no effect"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(
    name: str, sections: dict[str, Any], complaint: str, make: Make, registry: Registry
) -> None:
    config = make(name, **sections)
    with pytest.raises(UserError, match=re.escape(complaint)):
        Trainer(config, registry).train()
    assert not run_path(config).exists()


def test_diffusion_dpo_requires_weighting_of_pairs(tmp_path: Path, registry: Registry) -> None:
    config = RunConfig.model_validate(run_data(tmp_path, objective={"use": "diffusion-dpo"}))
    with pytest.raises(UserError, match="weighting: abs-advantage: diffusion-dpo requires the best and the worst"):
        Trainer(config, registry).train()


def test_unneeded_random_sampler_is_reported(make: Make, registry: Registry) -> None:
    class Recorder(Callback):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def on_message(self, text: str) -> None:
            self.notes.append(text)

    for name, sampler, expected in (("awm", "flow-sde", 1), ("awm", "flow-euler", 0), ("flow-grpo", "flow-sde", 0)):
        recorder = Recorder()
        config = make(
            name,
            run={"name": sampler + name, "iterations": 1},
            rollout={"sampler": sampler},
            evaluation={"model": "policy"},
        )
        Trainer(config, registry, callbacks=[recorder]).train()
        assert len(recorder.notes) == expected
        assert all(
            "flow-sde is random, but objective: awm does not require a random sampler" in note
            for note in recorder.notes
        )


def test_evaluation_with_another_sampler(make: Make, registry: Registry) -> None:
    """A deterministic evaluation sampler gives the same samples of the base model for any rollout sampler."""
    scores = []
    for name, rollout in (("flow-grpo", "flow-sde"), ("flow-grpo, cps", "flow-cps"), ("awm", "flow-euler")):
        config = make(name, run={"name": rollout, "iterations": 1}, rollout={"sampler": rollout, "steps": 5},
                      evaluation={"sampler": "flow-euler"})  # fmt: skip
        Trainer(config, registry).train()
        scores.append(logs(config, "evaluations.jsonl")[0]["value"])
    assert scores[0] == scores[1] == scores[2]


def test_the_second_update_of_an_iteration_is_off_policy(make: Make, registry: Registry) -> None:
    """The first update starts at ratio 1; at the second, the policy differs from the one that generated the path."""
    for updates in (1, 2):
        config = make("flow-grpo", run={"name": f"u{updates}", "iterations": 2}, optimizer={"updates": updates})
        Trainer(config, registry).train()
        distances = [record["extra"]["ratio_distance"] for record in logs(config)]
        assert all((distance > 1e-5) == (updates == 2) for distance in distances)
