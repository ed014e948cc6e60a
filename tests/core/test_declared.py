"""What plugins declare is checked when they are registered: places, and kinds of their own."""

from __future__ import annotations

import types
from typing import Any

import pytest

from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import Component, Kind, hookimpl
from dgpo_core.plugins.registry import Registry


def declaring(**declared: Any) -> types.ModuleType:
    """A plugin whose hooks return these values."""
    plugin = types.ModuleType("a_plugin")
    for hook, value in declared.items():
        setattr(plugin, hook, hookimpl(lambda value=value: value, specname=hook))
    return plugin


@pytest.mark.parametrize(
    ("places", "why"),
    [
        (42, "dgpo_reward_transports failed with TypeError"),
        (None, "dgpo_reward_transports failed with TypeError"),
        ({"worker": 42}, "dgpo_reward_transports: worker: must be 'package.module:connect'"),
        ({"worker": "nowhere"}, "dgpo_reward_transports: worker: must be 'package.module:connect'"),
        ({5: "a:b"}, "dgpo_reward_transports: 5 is not a key of a reward's section"),
        ({"a worker": "a:b"}, "dgpo_reward_transports: 'a worker' is not a key of a reward's section"),
    ],
)
def test_what_is_no_place(places: Any, why: str) -> None:
    registry = Registry(discover=False)
    with pytest.raises(PluginError, match=f"^{why}"):
        registry.register(declaring(dgpo_reward_transports=places), distribution="d")
    assert not registry.transports


def test_kinds_of_one_plugin_have_hooks_of_their_own() -> None:
    kinds = [Kind("eye", "dgpo_eyes", ("a:B",)), Kind("ear", "dgpo_eyes", ("a:B",))]
    with pytest.raises(PluginError, match=r"^dgpo_kinds: kind ear or hook dgpo_eyes already exists"):
        Registry(discover=False).register(declaring(dgpo_kinds=kinds), distribution="d")


def test_a_noun_is_a_text() -> None:
    kinds = [Kind("eye", "dgpo_eyes", ("a:B",), noun=5)]  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"^dgpo_kinds: eye: noun must be a string, not 5"):
        Registry(discover=False).register(declaring(dgpo_kinds=kinds), distribution="d")


def test_the_contract_of_a_kind_is_a_class() -> None:
    registry = Registry(discover=False)
    components = [Component("sharp", "Sees.", "decimal:Decimal")]
    kinds = [Kind("eye", "dgpo_eyes", ("json:dumps",))]
    registry.register(declaring(dgpo_kinds=kinds, dgpo_eyes=components), distribution="d")
    with pytest.raises(PluginError, match=r"^kind eye: its contract json:dumps is not a class$"):
        registry.implementation(registry.find("eye", "sharp"))
