"""Presets: laid over a run file, found in the backbone's package, and true to their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo_cli.main import main
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.problems import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "sd35-geneval.yaml"


def test_over_the_file_and_under_the_command_line(registry: Registry) -> None:
    plain = load_run_config(EXAMPLE, [], registry)
    found = load_run_config(EXAMPLE, ["optimizer.micro_batch=3"], registry, preset="24gb")
    assert found.backbone.gradient_checkpointing
    assert found.backbone.options["decode_chunk"] == 4
    assert found.backbone.options["text_length"] == plain.backbone.options["text_length"], "others stay"
    assert found.optimizer.micro_batch == 3
    assert found.rollout.guidance == plain.rollout.guidance


@pytest.mark.parametrize("name", ["24gb", "48gb", "80gb"])
def test_nothing_but_memory_changes(name: str, registry: Registry) -> None:
    plain, found = (
        load_run_config(EXAMPLE, [], registry, preset=preset).model_dump(mode="json") for preset in (None, name)
    )
    for data in (plain, found):
        for section, key in (("rollout", "micro_batch"), ("optimizer", "micro_batch")):
            data[section].pop(key)
        data["backbone"].pop("gradient_checkpointing")
        data["backbone"]["options"].pop("decode_chunk")
    assert found == plain


def test_later_presets_override_earlier_ones(registry: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("rollout: {micro_batch: 5, groups: 3}\n")
    both = load_run_config(EXAMPLE, [], registry, preset=["24gb", str(mine)])
    assert both.backbone.gradient_checkpointing
    assert (both.rollout.micro_batch, both.rollout.groups) == (5, 3)
    turned = load_run_config(EXAMPLE, [], registry, preset=[str(mine), "24gb"])
    assert (turned.rollout.micro_batch, turned.rollout.groups) == (24, 3)
    again = load_run_config(EXAMPLE, [], registry, preset=[str(mine), "24gb", str(mine)])
    assert again.rollout.micro_batch == 5
    with pytest.raises(UserError, match="'' is not a preset of backbone sd3"):
        load_run_config(EXAMPLE, [], registry, preset="")


def test_names_and_files_that_are_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--preset: '24GiB' is not a preset of backbone sd3; did you mean 24gb\?"):
        load_run_config(EXAMPLE, [], registry, preset="24GiB")
    with pytest.raises(ConfigError, match="no such file"):
        load_run_config(EXAMPLE, [], registry, preset=str(tmp_path / "mine.yaml"))


def test_a_mistake_is_shown_where_the_preset_has_it(registry: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("rollout:\n  micro_batch: 4\n  micro_bach: 3\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:3: rollout\.micro_bach.*did you mean micro_batch"):
        load_run_config(EXAMPLE, [], registry, preset=str(mine))
    mine.write_text("rollout: {micro_batch: 0}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:1: rollout\.micro_batch"):
        load_run_config(EXAMPLE, [], registry, preset=str(mine))


def test_an_explained_key_names_its_preset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("rollout: {micro_batch: 5}\n")
    keys = ["--explain", "rollout.micro_batch", "--explain", "optimizer.micro_batch"]
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(EXAMPLE), "--preset", "24gb", "--preset", str(mine), *keys])
    assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert f"5, set by the preset {mine} ({mine}:1)" in said
    assert "24, set by the preset 24gb (" in said


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(EXAMPLE), "--preset", "32gb"])
    assert ended.value.code == 2
    assert "presets: 16gb, 24gb, 48gb, 80gb" in " ".join(capsys.readouterr().err.split())
