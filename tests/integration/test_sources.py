"""Two tasks in one run of the miniature: scenes scored by GenEval, signs read by OCR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_core.training.trainer import Trainer
from dgpo_lab.reporting.data import read_run
from dgpo_lab.reporting.page import render

pytest.importorskip("dgpo_miniature")
pytest.importorskip("dgpo_ocr")

EXAMPLE = Path(__file__).parents[2] / "examples" / "miniature-sources.yaml"
SMALL = (
    "run.iterations=4", "rollout.groups=6", "rollout.group_size=4", "rollout.steps=4", "timesteps.count=1",
    "evaluation.every=4", "evaluation.prompts=12",
)  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_scenes_and_signs(tmp_path: Path) -> None:
    registry = get_registry()
    Trainer(load_run_config(EXAMPLE, [f"run.output={tmp_path}", *SMALL], registry), registry).train()
    run = tmp_path / "miniature-sources"
    metrics = lines(run / "metrics.jsonl")
    sources = [line["sources"] for line in metrics]
    assert sum(found["scenes"]["groups"] for found in sources) == 18, "3 : 1 of 24 groups"
    assert sum(found["signs"]["groups"] for found in sources) == 6
    for found, line in zip(sources, metrics, strict=True):
        assert set(found["scenes"]["rewards"]) == {"geneval"}
        assert set(found["signs"]["rewards"]) == {"ocr"}
        assert found["scenes"]["missing"] == found["signs"]["missing"] == 0, "not asked for is not missing"
        assert line["rewards"]["geneval"]["missing"] == line["rewards"]["ocr"]["missing"] == 0
        shares = [one["loss_weight"] for one in found.values() if one["loss_weight"] is not None]
        assert sum(shares) == pytest.approx(1)
    evaluated = {(line["iteration"], line["reward"]): line for line in lines(run / "evaluations.jsonl")}
    assert set(evaluated) >= {(i, reward) for i in (0, 4) for reward in ("geneval", "ocr")}
    assert set(evaluated[4, "geneval"]["sources"]) == {"scenes"}
    assert set(evaluated[4, "ocr"]["sources"]) == {"signs"}
    page = render(read_run(run, registry))
    assert "reward of source scenes" in page
    assert "reward of source signs" in page
