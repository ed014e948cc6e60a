"""The declarations: light, complete, and true to the classes they name; the README's Python runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo_core.plugins.registry import Registry
from dgpo_geneval import plugin
from dgpo_geneval.plugin import dgpo_rewards
from dgpo_geneval.reward import GenEvalReward
from dgpo_geneval.variants import VARIANTS
from dgpo_kit.contracts import check_declaration, check_light

COMPONENTS = {component.name: component for component in dgpo_rewards()}
README = Path(__file__).parents[1] / "README.md"


def test_one_reward_per_variant() -> None:
    assert set(COMPONENTS) == set(VARIANTS)
    for name, component in COMPONENTS.items():
        module, _, attribute = component.implementation.partition(":")
        implementation = getattr(importlib.import_module(module), attribute)
        assert issubclass(implementation, GenEvalReward)
        assert implementation.variant == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("detector", component.name) for component in plugin.dgpo_detectors()),
        ("prompts", "geneval"),
        *(("reward", name) for name in VARIANTS),
    ],
)
def test_declarations(kind: str, name: str) -> None:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-geneval")
    check_declaration(registry, kind, name)


def test_the_plugin_is_light() -> None:
    check_light("dgpo_geneval.plugin")


def test_the_detector_says_whose_weights_it_has() -> None:
    summaries = {component.name: component.summary for component in plugin.dgpo_detectors()}
    assert "Facebook" in summaries["mask2former"]
    assert "not the benchmark's" in summaries["mask2former"]
    boxes = ["detr", "grounding-dino", "owlv2", "yolox"]
    assert sorted(summaries) == sorted([*boxes, "mask2former"])
    assert all("no masks" in summaries[name] for name in boxes)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, dgpo_geneval.plugin, dgpo_geneval.detector, dgpo_geneval.evaluator, dgpo_geneval.diagnosis;"
        "import dgpo_geneval.detectors.options;"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
def test_readme_snippets_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    promised = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.split("\n")[:-1] == promised
