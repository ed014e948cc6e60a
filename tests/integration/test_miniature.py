"""The whole house on the real thing: the shipped model, its detector, LoRA through peft."""

from __future__ import annotations

from pathlib import Path

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_core.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SMALL = [
    "run.iterations=3", "run.threads=1", "rollout.groups=2", "rollout.group_size=3", "rollout.steps=2",
    "prompts.train.limit=4", "evaluation.prompts=2", "evaluation.every=2", "checkpoints.every=1",
]  # fmt: skip


def run(output: Path, *, stop_after: int | None) -> Path:
    """A small quickstart, in one go or with a resume."""
    config = load_run_config(ROOT / "examples/quickstart.yaml", [f"run.output={output}", *SMALL], get_registry())
    if stop_after is not None:
        Trainer(config, get_registry()).train(max_iterations=stop_after)
    Trainer(config, get_registry()).train(resume=stop_after is not None)
    return output / "quickstart"


def test_resume_is_bit_exact_on_the_miniature(tmp_path: Path) -> None:
    """Few prompts, so that a run finds most of them in its cache where a resumed one encodes them anew."""
    whole, resumed = run(tmp_path / "whole", stop_after=None), run(tmp_path / "resumed", stop_after=2)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (whole / name).read_text() == (resumed / name).read_text()
    for name in ("weights.safetensors", "optimizer.safetensors"):
        file = Path("checkpoints/000003") / name
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
