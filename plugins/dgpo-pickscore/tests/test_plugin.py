"""What the distribution declares, that declaring it is cheap, and that what the README shows works."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.plugins.installable import installable
from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import check_declaration, check_light
from dgpo_pickscore import plugin
from dgpo_pickscore.options import AestheticOptions, ClipScoreOptions, PickScoreOptions
from dgpo_pickscore.rewards import ClipScoreReward

ROOT = Path(__file__).parents[1]
NAMES = ["pickscore", "clipscore", "aesthetic"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry(discover=False)
    made.register(plugin, distribution="dgpo-pickscore")
    return made


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name: str, registry: Registry) -> None:
    check_declaration(registry, "reward", name)
    assert installable()["reward"][name] == "dgpo-pickscore"


def test_it_declares_nothing_else(registry: Registry) -> None:
    assert set(registry.components("reward")) == set(NAMES)


def test_the_entry_point_names_the_plugin_and_is_light() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["dgpo"] == {"pickscore": plugin.__name__}
    check_light(plugin.__name__)
    check_light(plugin.__name__, ("matplotlib", "open_clip", "huggingface_hub", "safetensors"))


def test_the_example_trains_on_it_as_published(registry: Registry) -> None:
    config = yaml.safe_load((ROOT.parents[1] / "examples" / "sd35-pickscore.yaml").read_text())
    (block,) = config["rewards"]
    assert block["use"] == "pickscore"
    options = PickScoreOptions.model_validate(block.get("options", {}))
    assert (options.model, options.scale, options.dtype) == ("yuvalkirstain/PickScore_v1", "flowgrpo", "float32")


@pytest.mark.parametrize("model", [PickScoreOptions, ClipScoreOptions, AestheticOptions])
@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"every": 0}, {"dtype": "float64"}, {"model": ""}, {"scale": "percentage"}, {"batch": True}]
)
def test_wrong_options_are_refused(model: type[PickScoreOptions], wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(wrong)


def test_without_open_clip_a_person_is_reported_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # what importing it then raises is an ImportError
    with pytest.raises(UserError, match=r"pip install 'dgpo-pickscore\[open-clip\]'"):
        ClipScoreReward(ClipScoreOptions(), device=torch.device("cpu"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_snippets_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    promised = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == promised


def test_the_readme_names_every_option() -> None:
    text = (ROOT / "README.md").read_text()
    fields = {n for m in (PickScoreOptions, ClipScoreOptions, AestheticOptions) for n in m.model_fields}
    assert [name for name in sorted(fields) if f"`{name}" not in text] == []
