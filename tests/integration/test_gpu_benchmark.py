"""benchmarks/gpu.py, which is for a machine with a card, runs: on the CPU, with small models of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.gpu import run
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.run import RunConfig
from dgpo_sd3.testing import make_tiny_checkpoint
from dgpo_wan.testing import make_tiny_checkpoint as make_tiny_wan


@pytest.mark.parametrize("case", ["sd35-512", pytest.param("wan-1.3b", marks=pytest.mark.slow)])
def test_it_runs_and_counts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = make_tiny_checkpoint if case == "sd35-512" else make_tiny_wan
    checkpoint = make(tmp_path / "tiny")
    run([
        case, "--resolution", "64", "--checkpoint", str(checkpoint), "--groups", "1", "--members", "2", "--merge",
        "--micro-batch", "2", "--iterations", "1", "--output", str(tmp_path / "gpu.json"),
    ])  # fmt: skip
    said = json.loads((tmp_path / "gpu.json").read_text())[case]
    assert said["samples"] == 2
    for phase in ("rollout", "optimize"):
        assert said["phases"][phase]["tflops"] > 0
    assert "of the ceiling (target 0.55)" in capsys.readouterr().out


def test_without_names_all_cases_are_run_at_their_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    phase = {"seconds": 1.0, "samples_per_second": 1.0, "tflops": 1.0, "fraction": 0.6}
    seen: list[RunConfig] = []

    def measured(config: RunConfig, registry: Registry, iterations: int) -> dict[str, Any]:
        registry.options_model(registry.find("backbone", config.backbone.use)).model_validate(config.backbone.options)
        seen.append(config)
        return {"device": "none", "samples": 1, "iterations": iterations, "ceiling_tflops": 1.0, "dtype": "bfloat16",
                "phases": {"rollout": phase, "optimize": phase}, "seconds": 2.0, "peak_memory_bytes": 1}  # fmt: skip

    monkeypatch.setattr("benchmarks.gpu.measure", measured)
    assert list(PARTS["gpu"](2, 3)) == ["sd35-512", "sd35-1024", "wan-1.3b"]
    assert [c.rollout.height_width for c in seen] == [(512, 512), (1024, 1024), (480, 832)]
    for config in seen[:2]:
        rollout, lora = config.rollout, config.backbone.lora
        assert (rollout.group_size, rollout.steps, rollout.guidance) == (24, 10, 4.5)
        assert (lora.rank, lora.alpha, config.timesteps.count) == (64, 128, 4)
        assert lora.targets is not None, "the published ones, not every projection"


def test_a_case_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["sd35"])
    assert ended.value.code == 2
    assert "there is no case 'sd35' (there is sd35-512, sd35-1024, wan-1.3b)" in capsys.readouterr().err
