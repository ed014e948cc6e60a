"""Ablation files: what they may say by themselves, before the run file that they vary is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_schemas.ablation import RESERVED, AblationConfig
from dgpo_schemas.export import schema_texts
from dgpo_schemas.loading import load_yaml, validate
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig

AXIS = {"key": "weighting", "values": ["uniform", "rank"]}


def read(tmp_path: Path, **changes: Any) -> AblationConfig:
    """An ablation file, with keys changed (None: left out)."""
    data: dict[str, Any] = {"name": "a", "base": "run.yaml", "axes": [AXIS], "seeds": 2} | changes
    file = tmp_path / "ablation.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}, sort_keys=False))
    return validate(AblationConfig, load_yaml(file))


def refused(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **changes)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_count_of_seeds_is_a_list(tmp_path: Path) -> None:
    assert read(tmp_path, seeds=3).seeds == [0, 1, 2]
    assert read(tmp_path, seeds=[7]).seeds == [7]
    found = read(tmp_path)
    assert (found.crossing, found.output, found.axes[0].title) == ("product", "runs", "weighting")
    written = found.model_dump(mode="json")
    assert AblationConfig.model_validate(written) == found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 0}, "ablation.yaml:8: seeds: at least one seed is needed: a count such as 5, or a list such as"),
        ({"seeds": []}, "seeds: at least one seed is needed"),
        ({"seeds": -2}, "seeds: at least one seed is needed"),
        ({"seeds": [1, 2, 1]}, "seeds: seed 1 is listed twice"),
        ({"seeds": [-1]}, "seeds.0: must be at least 0"),
        ({"seeds": True}, "seeds: must be a list"),
        ({"seeds": 20250101}, "for the single seed 20250101 write [20250101]"),
        ({"seeds": None}, "seeds: is missing"),
        ({"axes": []}, "axes: must have at least 1 entry"),
        ({"axes": [{"key": "weighting"}]}, "axes.0: set a `key` with its `values`, or `variants`"),
        ({"axes": [{"values": [1]}]}, "axes.0: set a `key` with its `values`"),
        ({"axes": [{"key": "weighting", "values": []}]}, "axes.0.values: must have at least 1 entry"),
        ({"axes": [AXIS | {"variants": {"a": {}}}]}, "axes.0: set `key` with `values`, or `variants`, not both"),
        ({"axes": [{"variants": {"a": {}}}]}, "axes.0: an axis with `variants` needs a `name`"),
        ({"axes": [{"name": "x", "variants": {"a/b": {}}}]}, "axes.0: 'a/b' is not a valid variant name"),
        ({"axes": [{"name": "x", "variants": {"a": 3}}]}, "axes.0.variants.a: must be a section"),
        ({"axes": [AXIS | {"name": "a=b"}]}, "axes.0: 'a=b' is not a valid name"),
        ({"axes": [AXIS | {"valuse": []}]}, "axes.0.valuse: unknown key; did you mean values?"),
        ({"crossing": "eahc"}, "crossing: must be product or each, not 'eahc'; did you mean each?"),
        ({"stop": {"iteratons": 3}}, "stop.iteratons: unknown key; did you mean iterations?"),
        ({"stop": {"seconds": 0}}, "stop.seconds: must be greater than 0"),
        ({"name": "a/b"}, "name: 'a/b' is not allowed here"),
        ({"parallel": 0}, "parallel: must be at least 1"),
        ({"devices": [-1]}, "devices.0: must be at least 0"),
        ({"base": None}, "base: is missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    message = refused(tmp_path, **changes)
    assert says in message
    assert message.startswith("ablation.yaml")


def test_the_schema_is_exported() -> None:
    assert '"title": "AblationConfig"' in schema_texts({})["ablation.schema.json"]


def test_the_keys_that_an_ablation_sets_exist() -> None:
    for key in RESERVED:
        section, name = key.split(".")
        assert name in RunConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
