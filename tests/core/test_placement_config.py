"""Run files whose rewards live elsewhere: what is not installed here is checked there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dgpo_core.builtin import plugin as builtin
from dgpo_core.config.changes import differing_keys
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.rewards import place
from dgpo_kit.toy import plugin as toy
from dgpo_kit.toy import run_data
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.rewards import RewardBlock

SERVICE = {"urls": ["http://127.0.0.1:8500"]}
PLACES = (("rewards",), ("evaluation", "rewards"), ("evaluation", "monitors", "rewards"))


def load(tmp_path: Path, registry: Registry, block: Any, place: tuple[str, ...] = ("rewards",)) -> RewardBlock:
    """The block, as a run file with it in a place is understood."""
    data = run_data("runs")
    here = data
    for component in place[:-1]:
        here = here.setdefault(component, {})
    here[place[-1]] = [block]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    found: Any = load_run_config(tmp_path / "run.yaml", registry=registry)
    for component in place:
        found = getattr(found, component)
    made: RewardBlock = found[0]
    return made


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("where", [{"worker": {}}, {"worker": {"python": "/x"}}, {"service": SERVICE}])
def test_what_is_not_known_here_is_left_to_be_checked_there(
    tmp_path: Path, registry: Registry, place: tuple[str, ...], where: Any
) -> None:
    block = {"use": "unheard-of", "options": {"any": {"thing": 1}}} | where
    assert load(tmp_path, registry, block, place).options == {"any": {"thing": 1}}
    with pytest.raises(ConfigError, match=r"unknown reward 'unheard-of'"):
        load(tmp_path, registry, {"use": "unheard-of"}, place)
    for nowhere in ({"worker": None}, {"service": None}):
        with pytest.raises(ConfigError, match=r"unknown reward 'unheard-of'"):
            load(tmp_path, registry, {"use": "unheard-of"} | nowhere, place)


def test_what_is_known_here_is_checked_here(tmp_path: Path, registry: Registry) -> None:
    for where in ({"worker": {}}, {"service": SERVICE}):
        with pytest.raises(ConfigError, match=r"rewards.0.options.scael: unknown key; did you mean scale"):
            load(tmp_path, registry, {"use": "brightness", "options": {"scael": 1}} | where)
        full = load(tmp_path, registry, {"use": "brightness", "options": {"scale": 2}} | where).options
        assert full == {"scale": 2.0, "fail": "never"}
    assert load(tmp_path, registry, {"use": "brightness", "worker": {}}).options == {"scale": 1.0, "fail": "never"}


def test_a_service_s_own_options_hold_where_none_are_given(tmp_path: Path, registry: Registry) -> None:
    assert load(tmp_path, registry, {"use": "brightness", "service": SERVICE}).options == {}
    assert load(tmp_path, registry, {"use": "brightness", "service": SERVICE, "options": {}}).options == {}


def test_a_component_that_an_option_chooses_may_be_there_only(tmp_path: Path, registry: Registry) -> None:
    block = {"use": "geneval", "options": {"detector": "unheard-of"}}
    assert load(tmp_path, registry, block | {"worker": {}}).options["detector"]["use"] == "unheard-of"
    with pytest.raises(ConfigError, match=r"unknown detector 'unheard-of'"):
        load(tmp_path, registry, block)


def test_mistakes_in_the_sections_are_still_found(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"rewards.0.worker.pyhton: unknown key; did you mean python"):
        load(tmp_path, registry, {"use": "unheard-of", "worker": {"pyhton": "x"}})
    with pytest.raises(ConfigError, match=r"rewards.0.service.urls: is missing"):
        load(tmp_path, registry, {"use": "brightness", "service": {}})
    with pytest.raises(ConfigError, match=r"set `worker` or `service`, not both"):
        load(tmp_path, registry, {"use": "brightness", "worker": {}, "service": SERVICE})


def test_a_place_whose_plugin_is_missing_is_reported_with_what_to_install(tmp_path: Path) -> None:
    bare = Registry(discover=False)
    bare.register(builtin, distribution="dgpo")
    bare.register(toy, distribution="toy")
    for key, where in (("worker", {"worker": {}}), ("service", {"service": SERVICE})):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, bare, {"use": "brightness"} | where)
        (problem,) = caught.value.problems
        assert problem.key == f"rewards.0.{key}"
        assert "run.yaml:" in problem.where
        assert "pip install -e plugins/dgpo-remote" in problem.message
        block = RewardBlock.model_validate({"use": "brightness"} | where)
        with pytest.raises(UserError, match=rf"^rewards.0.{key}: .*pip install -e plugins/dgpo-remote"):
            place(block, bare, device=torch.device("cpu"), where="rewards.0")
    assert place(RewardBlock(use="brightness"), bare, device=torch.device("cpu")).is_remote is False


def test_reading_a_run_file_imports_no_place(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds, and connecting to it tells of one that cannot be imported."""
    monkeypatch.setattr(Registry, "transport", lambda *_: pytest.fail("imported"))
    for where in ({"worker": {}}, {"service": SERVICE}):
        load(tmp_path, registry, {"use": "brightness"} | where)


def test_a_resumed_run_may_move_its_rewards() -> None:
    def config(**block: Any) -> RunConfig:
        blocks = [{"use": "brightness"} | block]
        monitors = [blocks[0] | {"name": "monitor"}]
        evaluation = {"rewards": blocks, "monitors": {"rewards": monitors}}
        return RunConfig.model_validate(run_data("runs", rewards=blocks, evaluation=evaluation))

    for one in (config(), config(worker={}), config(service=SERVICE)):
        for other in (config(), config(worker={"python": "x", "environment": {"A": "b"}}), config(service=SERVICE)):
            assert differing_keys(one, other) == []
    changed = differing_keys(config(), config(worker={}, options={"scale": 2}))
    assert changed
    assert all(".options" in key for key in changed)
