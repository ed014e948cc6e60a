"""Whole runs on the toy model: t_min moves, is logged and saved; mistakes are reported before the run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import dgpo_cli.plugin
import dgpo_core.plugins.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
TIMESTEPS: dict[str, dict[str, Any]] = {
    "scheduled-t-min": {"start": 0.8, "end": 0.4, "shape": "cosine"},
    "disagreement-t-min": {"every": 2, "samples": 3},
    "dsm-gap-t-min": {"every": 2, "samples": 3, "bins": 5, "threshold": 0.0, "start": 0.6, "smoothing": 0.25},
}


def sections(name: str, **options: Any) -> dict[str, Any]:
    return {
        "timesteps": {"use": name, "count": 2, "t_min": 0.1, "options": TIMESTEPS[name] | options},
        "optimizer": {"learning_rate": 0.05},
        "objective": {"ema_rollouts_after": 2},
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(name: str, options: dict[str, Any] | None = None, **changes: dict[str, Any]) -> RunConfig:
        merged = sections(name, **(options or {}))
        for section, values in changes.items():
            merged[section] = merged.get(section, {}) | values
        return RunConfig.model_validate(run_data(tmp_path, **merged))

    return build


def logs(config: RunConfig, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / name).read_text().splitlines()]


def manifest(config: RunConfig) -> dict[str, Any]:
    """Return the state of the newest checkpoint."""
    found: dict[str, Any] = json.loads(
        (sorted((run_path(config) / "checkpoints").iterdir())[-1] / "manifest.json").read_text()
    )
    return found


def fingerprint(config: RunConfig) -> list[bytes]:
    path = run_path(config)
    newest = sorted((path / "checkpoints").iterdir())[-1]
    saved = [newest / name for name in ("manifest.json", "optimizer.safetensors", "weights.safetensors")]
    return [f.read_bytes() for f in (path / "metrics.jsonl", path / "evaluations.jsonl", *saved)]


@pytest.mark.parametrize("within", ["uniform", "sampler-steps"])
@pytest.mark.parametrize("name", TIMESTEPS)
def test_resume_is_bit_exact(name: str, within: str, make: Make, registry: Registry) -> None:
    config = make(name, {"within": within}, rollout={"steps": 12})
    Trainer(config, registry).train()
    wanted = fingerprint(config)
    for stop_after in (1, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert fingerprint(config) == wanted


@pytest.mark.parametrize("name", ["disagreement-t-min", "dsm-gap-t-min"])
def test_t_min_moves_with_the_model_and_is_saved(name: str, make: Make, registry: Registry) -> None:
    config = make(name)
    Trainer(config, registry).train()
    records = logs(config)
    lows = [record["timesteps"]["t_min"] for record in records]
    assert lows[0] == lows[1] != lows[2] == lows[3], "every two iterations"
    assert manifest(config)["timesteps"]["t_min"] == lows[-1]
    values = {key: value for key, value in records[-1]["timesteps"].items() if key not in ("t_min", "t_max")}
    assert manifest(config)["timesteps"]["found"] == values != {}
    for record in records:
        assert record["timesteps"]["t_min"] <= record["t_min"] <= record["t_max"] <= record["timesteps"]["t_max"] == 1
        assert record["timesteps"]["t_min"] >= 0.1
    assert all("measure" in timing["phases"] for timing in logs(config, "timings.jsonl"))


def test_untrained_policy_has_no_gap(make: Make, registry: Registry) -> None:
    config = make("dsm-gap-t-min", run={"iterations": 1})
    Trainer(config, registry).train()
    assert logs(config)[0]["timesteps"] == {"t_min": 0.6, "t_max": 1.0, "gap_low": 0.0, "gap_high": 0.0}


def test_more_steps_give_a_smaller_t_min(make: Make, registry: Registry) -> None:
    lows = []
    for steps in (2, 4, 8, 16):
        config = make("disagreement-t-min", run={"name": f"s{steps}", "iterations": 1}, rollout={"steps": steps},
                      timesteps={"t_min": 0.0})  # fmt: skip
        Trainer(config, registry).train()
        (record,) = logs(config)
        lows.append(record["timesteps"]["t_min"])
        r = record["timesteps"]["disagreement"]
        assert lows[-1] == pytest.approx(r / (r + 0.1))
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > 2 * lows[-1]


def test_schedule_is_followed_and_has_no_state(make: Make, registry: Registry) -> None:
    config = make("scheduled-t-min")
    Trainer(config, registry).train()
    lows = [record["timesteps"]["t_min"] for record in logs(config)]
    assert lows == pytest.approx([0.8 - 0.4 * math.sin(math.pi * i / 8) ** 2 for i in range(4)])
    assert manifest(config)["timesteps"] == {}
    assert all("measure" not in timing["phases"] for timing in logs(config, "timings.jsonl"))


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMESTEPS)
def test_too_few_steps_are_refused(name: str, make: Make, registry: Registry) -> None:
    config = make(name, {"within": "sampler-steps"}, timesteps={"count": 3})
    with pytest.raises(UserError, match=r"timesteps\.count: 3 times cannot be drawn .* of the sampler's 3 lie; lower"):
        Trainer(config, registry).train()
    assert not run_path(config).exists()


@pytest.mark.parametrize("name", ["disagreement-t-min"])
@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"]])
def test_a_random_sampler_is_refused_in_one_line(
    name: str, command: list[str], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from dgpo_baselines import plugin as baselines

    registry.register(baselines, distribution="dgpo-baselines")
    registry.register(dgpo_cli.plugin, distribution="dgpo")
    monkeypatch.setattr(registry_module, "get_registry", lambda: registry)
    data = run_data(tmp_path, **sections(name), rollout={"sampler": "flow-sde"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SystemExit) as caught:
        main([command[0], str(tmp_path / "run.yaml"), *command[1:]])
    assert caught.value.code == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(complaint) == 1
    assert "rollout.sampler is random; use dsm-gap-t-min or scheduled-t-min, or a deterministic sampler" in complaint[0]
    assert not (tmp_path / "toy").exists()


def test_schedule_with_a_random_sampler(make: Make, registry: Registry) -> None:
    from dgpo_baselines import plugin as baselines

    registry.register(baselines, distribution="dgpo-baselines")
    config = make("scheduled-t-min", rollout={"sampler": "flow-sde"}, run={"iterations": 1})
    assert Trainer(config, registry).train() == "finished"


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("scheduled-t-min", {"until": 0}, "until must be greater than 0"),
        ("scheduled-t-min", {"start": 1.5}, "start"),
        ("scheduled-t-min", {"shape": "square"}, "shape"),
        ("disagreement-t-min", {"tolerance": 0}, "tolerance must be greater than 0"),
        ("disagreement-t-min", {"smoothing": 1}, "smoothing must be less than 1"),
        ("disagreement-t-min", {"refine": 1}, "refine must be at least 2"),
        ("dsm-gap-t-min", {"bins": 1}, "bins must be at least 2"),
        ("dsm-gap-t-min", {"samples": 1}, "samples must be at least 2"),
        ("dsm-gap-t-min", {"every": 0}, "every must be at least 1"),
        ("dsm-gap-t-min", {"threshold": -1}, "threshold must be at least 0"),
        ("dsm-gap-t-min", {"treshold": 0.1}, "treshold"),
    ],
)
def test_options_out_of_bounds(
    name: str, options: dict[str, Any], complaint: str, make: Make, registry: Registry
) -> None:
    with pytest.raises(UserError) as caught:
        Trainer(make(name, options), registry).train()
    assert complaint in str(caught.value).replace("`", "").replace(": ", " ")
