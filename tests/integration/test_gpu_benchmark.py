"""benchmarks/gpu.py, which is for a machine with a card, runs: on the CPU, with a small model of random weights."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from dgpo_sd3.testing import make_tiny_checkpoint

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_it_runs_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    words = ["--resolution", "64", "--checkpoint", str(checkpoint), "--groups", "1", "--members", "2",
             "--micro-batch", "2", "--iterations", "1", "--output", str(tmp_path / "gpu.json")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["gpu.py", *words])
    import sys

    namespace = runpy.run_path(str(BENCHMARK), run_name="gpu_benchmark")
    module = type(sys)("gpu_benchmark")
    vars(module).update(namespace)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)  # its parts are imported by name
    namespace["main"](words)
    said = json.loads((tmp_path / "gpu.json").read_text())["64"]
    assert said["samples"] == 2
    for verb in ("roll out", "optimise"):
        assert said["verbs"][verb]["tflops"] > 0
    out = capsys.readouterr().out
    assert "of the ceiling (target 0.55)" in out
