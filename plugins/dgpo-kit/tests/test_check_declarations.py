"""`check_declaration`, `check_light` and `check_prompts` pass sound plugins and find each broken requirement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import ConfigDict, Field

from dgpo_core.contracts import PromptSource
from dgpo_core.errors import PluginError, UserError
from dgpo_core.hookspecs import Command, Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_declaration, check_light, check_prompts, distribution_checks
from dgpo_kit.toy import BrightnessOptions, ToyPrompts, ToyPromptsOptions
from dgpo_schemas.base import Options

Check = Callable[[], None]
Found = Callable[[str, Check], None]


def source(function: Callable[[str], list[Prompt]]) -> Callable[[], PromptSource]:
    class Made(PromptSource):
        def prompts(self, split: Any) -> Sequence[Prompt]:
            return function(split)

    return lambda: Made(None)


def test_the_toy_prompts_pass() -> None:
    check_prompts(lambda: ToyPrompts(ToyPromptsOptions()))


counter = iter(range(1000))


@pytest.mark.parametrize(
    ("requirement", "check"),
    [
        ("train: there must be at least one prompt", lambda: check_prompts(source(lambda split: []))),
        ("every prompt must have a text", lambda: check_prompts(source(lambda split: [Prompt(" ")]))),
        ("must not share prompts, got .'a'.", lambda: check_prompts(source(lambda split: [Prompt("a")]))),
        (
            "the same options must return the same",
            lambda: check_prompts(source(lambda s: [Prompt(f"{s} {next(counter)}")])),
        ),
        ("JSON", lambda: check_prompts(source(lambda split: [Prompt(split, {"x": {1, 2}})]))),
    ],
)
def test_prompts(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


def declared(component: Component) -> Registry:
    class Plugin:
        @hookimpl
        def dgpo_rewards(self) -> list[Component]:
            return [component]

    registry = Registry(discover=False)
    registry.register(Plugin(), distribution="made")
    return registry


BRIGHTNESS = "dgpo_kit.toy:BrightnessReward"


class Lax(Options):
    """Takes anything."""

    model_config = ConfigDict(extra="allow")


class Silent(Options):
    """Has an option that nobody explains."""

    size: int = 1


class Narrow(Options):
    """Writes what it cannot read."""

    size: int = Field(default=1, description="A number.", serialization_alias="Size")

    def model_dump(self, **keywords: Any) -> dict[str, Any]:
        return {"size": self.size + 1}


def test_a_sound_declaration_passes() -> None:
    check_declaration(declared(Component("r", "A reward", BRIGHTNESS, BrightnessOptions)), "reward", "r")


@pytest.mark.parametrize(
    ("requirement", "check"),
    [
        ("the summary must be one line", lambda: check(Component("r", "One\ntwo", BRIGHTNESS))),
        ("an unknown option must raise UserError", lambda: check(Component("r", "A reward", BRIGHTNESS, Lax))),
        ("option size must have a description", lambda: check(Component("r", "A reward", BRIGHTNESS, Silent))),
        (
            "options must be the same after writing and reading",
            lambda: check(Component("r", "A reward", BRIGHTNESS, Narrow)),
        ),
        ("must derive from RewardModel", lambda: check(Component("r", "A reward", "dgpo_kit.toy:ToyPrompts"))),
        ("must implement score", lambda: check(Component("r", "A reward", "dgpo_core.contracts:RewardModel"))),
    ],
)
def test_declarations(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


def check(component: Component) -> None:
    check_declaration(declared(component), "reward", "r")


def test_options_that_are_no_options() -> None:
    with pytest.raises(PluginError, match="its options must be a pydantic model"):
        check(Component("r", "A reward", BRIGHTNESS, "dgpo_kit.toy:BrightnessReward"))
    with pytest.raises(UserError, match="unknown reward 's'"):
        check_declaration(declared(Component("r", "A reward", BRIGHTNESS)), "reward", "s")


@pytest.mark.parametrize(
    ("requirement", "check"),
    [
        ("must not import .*torch", lambda: check_light("dgpo_kit.toy")),
        ("must be importable: .*No module named", lambda: check_light("dgpo_core.no_such_module")),
    ],
)
def test_modules(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


def test_commands_can_be_imported() -> None:
    class Plugin:
        @hookimpl
        def dgpo_commands(self) -> list[Command]:
            return [Command("fine", "Fine.", "json:dumps"), Command("lost", "Lost.", "no_such_module:f")]

    registry = Registry(discover=False)
    registry.register(Plugin(), distribution="tools", version="1")
    checks = {check.name: check for check in distribution_checks(registry, "tools")}
    with pytest.raises(PluginError, match=r"^command lost of tools 1: cannot import no_such_module:f"):
        checks["commands"].run()
