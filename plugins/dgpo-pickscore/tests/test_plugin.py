"""What the distribution declares, that declaring it is cheap, and that what the README shows works."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.plugins.installable import installable
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_declaration, check_light
from dgpo_pickscore import plugin
from dgpo_pickscore.hpsv2 import HpsReward
from dgpo_pickscore.options import (
    AestheticOptions,
    ClipOptions,
    ClipScoreOptions,
    HpsOptions,
    ImageRewardOptions,
    PickScoreOptions,
    SiglipOptions,
)
from dgpo_pickscore.rewards import ClipScoreReward
from dgpo_schemas.base import UseBlock

ROOT = Path(__file__).parents[1]
NAMES = ["pickscore", "clipscore", "hpsv2", "imagereward", "siglipscore", "aesthetic"]
OPTIONS: list[type[ClipOptions]] = [
    PickScoreOptions, ClipScoreOptions, HpsOptions, ImageRewardOptions, SiglipOptions, AestheticOptions
]  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry(discover=False)
    made.register(plugin, distribution="dgpo-pickscore")
    return made


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name: str, registry: Registry) -> None:
    check_declaration(registry, "reward", name)
    assert installable()["reward"][name] == "dgpo-pickscore"


@pytest.mark.parametrize("name", ["hpsv2", "imagereward", "siglipscore"])
def test_size_and_license_are_shown(name: str, registry: Registry) -> None:
    assert re.search(r"weights \d\.\d GB, Apache-2\.0$", registry.components("reward")[name].component.summary)


@pytest.mark.parametrize("name", ["pickscore", "imagereward", "siglipscore"])
def test_tiny_checkpoints(name: str, registry: Registry, tmp_path: Path) -> None:
    """What `dgpo plugins tiny` writes scores with these options."""
    module, _, function = registry.components("reward")[name].component.tiny.partition(":")
    directory = str(getattr(import_module(module), function)(tmp_path / "tiny"))
    options = {"model": directory}
    if name != "siglipscore":
        options["processor" if name == "pickscore" else "tokenizer"] = directory
    reward = registry.create("reward", UseBlock(use=name, options=options), device=torch.device("cpu"))
    assert not reward.score(torch.rand(1, 3, 20, 30), [Prompt("a fox")]).missing.any()


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


@pytest.mark.parametrize("model", OPTIONS)
@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"every": 0}, {"dtype": "float64"}, {"model": ""}, {"scale": "percentage"}, {"batch": True}]
)
def test_wrong_options_are_refused(model: type[ClipOptions], wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(wrong)


def test_without_open_clip_a_person_is_reported_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # what importing it then raises is an ImportError
    with pytest.raises(UserError, match=r"pip install 'dgpo-pickscore\[open-clip\]'"):
        ClipScoreReward(ClipScoreOptions(), device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"reward hpsv2 requires open_clip .*\[open-clip\]"):
        HpsReward(HpsOptions(), device=torch.device("cpu"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_snippets_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    promised = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == promised


def test_the_readme_names_every_option() -> None:
    text = (ROOT / "README.md").read_text()
    fields = {n for m in OPTIONS for n in m.model_fields}
    assert [name for name in sorted(fields) if f"`{name}" not in text] == []
