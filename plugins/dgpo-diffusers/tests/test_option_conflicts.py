"""Settings that exclude each other are refused when the run file is read, by every command in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dgpo_core.plugins.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection

QUANTIZED = {"quantize": "torchao-int8"}
NF4 = {"quantize": "bnb-nf4"}
OFFLOAD = {"group_offload": "block"}
CACHE = {"rollout_cache": {"use": "taylorseer", "full_steps": 2}}
FULL = {"rollout_cache": {"use": "taylorseer", "full_steps": 3}}
TINY = {"tiny_decoder": "madebyollin/taesd3"}

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("flux", QUANTIZED, {"backbone": {"train": "full"}}, "backbone.options.quantize: train: full trains the"),
    ("flux", QUANTIZED, {"backbone": {"lora": {"dora": True}}}, "backbone.options.quantize: DoRA reads the norms of"),
    ("flux", QUANTIZED, {"run": {"shard": True}}, "run.shard: a quantized denoiser cannot be sharded; leave run.shard"),
    ("flux", QUANTIZED, {"rollout": {"merge_adapter": True}}, "rollout.merge_adapter: an adapter cannot be merged"),
    ("flux", {**NF4, "offload_text": True}, {}, "backbone.options.quantize: bnb-nf4 keeps text encoders on the device"),
    ("flux", NF4, {"run": {"device": "cpu"}}, "backbone.options.quantize: bnb-nf4 requires a CUDA device, and this"),
    ("flux", {**OFFLOAD, "offload_text": True}, {}, "backbone.options.group_offload: offload_text moves text encoders"),
    ("flux", {**OFFLOAD, **NF4}, {}, "backbone.options.group_offload: bnb-nf4 keeps text encoders on the device; use"),
    ("flux", OFFLOAD, {"run": {"device": "cpu"}}, "backbone.options.group_offload: this run is on the CPU"),
    ("flux", OFFLOAD, {"run": {"shard": True}}, "backbone.options.group_offload: this run is on the CPU (or its model"),
    ("flux", CACHE, {"run": {"shard": True}}, "backbone.options.rollout_cache: cached predictions are not possible"),
    ("flux", CACHE, {"backbone": {"compile": True}}, "backbone.options.rollout_cache: layers of a compiled model"),
    ("flux", FULL, {}, "backbone.options.rollout_cache.full_steps: 3 first steps without prediction are all 3 steps"),
    ("sdxl", CACHE, {}, "backbone.options.rollout_cache: taylorseer is not possible with sdxl: its layers are not"),
    ("wan", TINY, {}, "backbone.options.tiny_decoder: tiny decoders decode images, and wan draws videos; leave it out"),
    ("ltx-video", TINY, {}, "backbone.options.tiny_decoder: tiny decoders decode images, and ltx-video draws videos"),
]  # fmt: skip


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.register(plugin, distribution="toy")
    return made


def data_of(path: Path, use: str, options: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A run file of a checkpoint that does not exist."""
    data = run_data(path, run={"device": "auto"})
    data["backbone"] = {"use": use, "checkpoint": "no/such-model", "options": options}
    return data | {section: data[section] | values for section, values in more.items()}


@pytest.mark.parametrize(("use", "options", "more", "text"), REFUSED, ids=[case[3][:60] for case in REFUSED])
def test_what_cannot_work_is_refused_when_the_file_is_read(
    registry: Registry, tmp_path: Path, use: str, options: dict[str, Any], more: dict[str, Any], text: str
) -> None:
    file = tmp_path / "run.yaml"
    data = data_of(tmp_path, use, options, more)
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(ConfigError) as refused:
        load_run_config(file, registry=registry)
    (problem,) = refused.value.problems
    assert f"{problem.key}: {problem.message}".startswith(text)
    key = problem.key.rpartition(".")[2]
    assert file.read_text().splitlines()[int(problem.where.rpartition(":")[2]) - 1].strip().startswith(f"{key}:")
    with pytest.raises(UserError) as made:
        build_engine(RunConfig.model_validate(data), registry)
    assert str(made.value) == f"{problem.key}: {problem.message}", "of a run that was not read from a file"


def test_what_can_work_is_accepted(registry: Registry, tmp_path: Path) -> None:
    text_only = {"quantize": {"method": "torchao-int8", "components": ["text_encoders"]}}
    accepted: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (text_only, {"run": {"shard": True}, "rollout": {"merge_adapter": True}}),
        (text_only, {"backbone": {"train": "full"}}),
        ({"quantize": {"method": "bnb-nf4", "components": ["denoiser"]}, "offload_text": True}, {}),
        ({**QUANTIZED, **OFFLOAD}, {}),
        (CACHE | TINY, {}),
    ]
    for options, more in accepted:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(data_of(tmp_path, "flux", options, more)))
        assert load_run_config(file, registry=registry).backbone.use == "flux"


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["train", "--dry-run"]], ids=" ".join)
def test_commands_refuse_before_anything_is_loaded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(registry_module, "get_registry", lambda: registry)
    monkeypatch.setattr(DiffusersBackbone, "__init__", lambda *given, **more: pytest.fail("a model was built"))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(data_of(tmp_path, "flux", QUANTIZED, {"rollout": {"merge_adapter": True}})))
    with pytest.raises(SystemExit) as ended:
        main([*command[:1], str(file), *command[1:]])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rollout.merge_adapter: an adapter cannot be merged into a quantized denoiser without loss; set" in said


def test_a_backbone_made_alone_refuses_them_too() -> None:
    section = BackboneSection(use="flux", checkpoint="no/such-model", compile=True)
    for device in ("cpu", "meta"):
        with pytest.raises(UserError, match=r"^backbone\.options\.rollout_cache: layers of a compiled model"):
            FluxBackbone(section, FluxOptions.model_validate(CACHE), device=torch.device(device))


def test_options_know_what_their_backbones_draw(registry: Registry) -> None:
    for registered in registry.components("backbone").values():
        model, kind = registry.options_model(registered), registry.implementation(registered)
        if issubclass(kind, DiffusersBackbone):
            assert model.media == kind.media  # type: ignore[attr-defined]
