"""benchmarks/gpu.py, which is for a machine with a card, runs: on the CPU, with small models of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import CASES, run
from dgpo_sd3.testing import make_tiny_checkpoint
from dgpo_wan.testing import make_tiny_checkpoint as make_tiny_wan


@pytest.mark.parametrize("case", ["sd35-512", "wan-1.3b"])
def test_it_runs_and_counts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = make_tiny_checkpoint if case == "sd35-512" else make_tiny_wan
    checkpoint = make(tmp_path / "tiny")
    run([
        case, "--resolution", "64", "--checkpoint", str(checkpoint), "--groups", "1", "--members", "2", "--merge",
        "--micro-batch", "2", "--iterations", "1", "--output", str(tmp_path / "gpu.json"),
    ])  # fmt: skip
    said = json.loads((tmp_path / "gpu.json").read_text())[case]
    assert said["samples"] == 2
    for verb in ("roll out", "optimise"):
        assert said["verbs"][verb]["tflops"] > 0
    assert "of the ceiling (target 0.55)" in capsys.readouterr().out


def test_cases_are_the_published_sizes() -> None:
    assert CASES["sd35-512"].members == CASES["sd35-1024"].members == 24
    assert CASES["wan-1.3b"].resolution == (480, 832)
