"""All checks of an installed component, selected by its kind and name."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from dgpo_core.contracts import Backbone, GroupReward, Objective
from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.declared import RegisteredComponent
from dgpo_core.plugins.isolation import imported
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.checks import check_adapter
from dgpo_kit.contracts._backbone import backbone_checks
from dgpo_kit.contracts._check import Check
from dgpo_kit.contracts._declarations import declaration_checks
from dgpo_kit.contracts._group_reward import group_reward_checks
from dgpo_kit.contracts._objective import objective_checks
from dgpo_kit.contracts._prompts import prompts_checks
from dgpo_kit.contracts._reward import reward_checks
from dgpo_kit.contracts._sampler import sampler_checks
from dgpo_kit.contracts._suites import suite_checks
from dgpo_kit.contracts._timesteps import timesteps_checks
from dgpo_kit.contracts._weighting import weighting_checks
from dgpo_kit.given import Given, NeedsInput
from dgpo_schemas.base import UseBlock
from dgpo_schemas.problems import explain
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["component_checks", "components_of"]

CPU = torch.device("cpu")
NO_CHECKPOINT = "none"
"""The checkpoint of a backbone if none is given. A backbone that creates its own weights ignores it."""
OBJECTIVE_SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {"kl": 0.0}, {"clip": None}, {"clip": None, "kl": 0.0}, {"clip_kl": True, "kl": 1.0}, {"reference": "ema_fast"},
)  # fmt: skip


def components_of(registry: Registry, distribution: str) -> list[RegisteredComponent]:
    """Return the loaded components of a distribution, by kind and name."""
    return [p for kind in registry.kinds for p in registry.components(kind).values() if p.distribution == distribution]


def component_checks(registry: Registry, kind: str, name: str, given: Given | None = None) -> Iterator[Check]:
    """Yield the checks of a component's declaration and contract. Nothing is built before a check runs.

    Checks raise NeedsInput if the component cannot be built with the input in `given`.
    """
    given = given or Given()
    yield from declaration_checks(registry, kind, name, given.options)
    build = _Builder(registry, kind, name, given)
    if kind in _CHECKS:
        yield from _CHECKS[kind](build, given)
    elif path := registry.kinds[kind].checks:
        yield from imported(f"kind {kind}", path)(build.on_device)


class _Builder:
    """Builds a component as a run does."""

    def __init__(self, registry: Registry, kind: str, name: str, given: Given) -> None:
        self.registry, self.kind, self.name, self.given = registry, kind, name, given

    def __call__(self, section: type[UseBlock] = UseBlock, settings: Mapping[str, Any] | None = None, **kw: Any) -> Any:
        """Build the component with `settings` in its section. Raises NeedsInput if the user must provide input."""
        self._check_options()
        data = {"use": self.name, "options": dict(self.given.options), **(settings or {}), **self.given.section}
        try:
            return self.registry.create(self.kind, section.model_validate(data), **kw)
        except PluginError:
            raise
        except UserError as error:
            raise NeedsInput(f"other input: {error}") from error

    def on_device(self) -> Any:
        return self(device=CPU)

    def _check_options(self) -> None:
        """Raise NeedsInput for missing or invalid options."""
        model = self.registry.options_model(self.registry.find(self.kind, self.name))
        options = dict(self.given.options)
        try:
            model.model_validate(options)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, path))} {message}" for path, message in explain(model, options, error)]
            raise NeedsInput(f"options: {'; '.join(wrong)}") from error


def _backbone(build: _Builder, given: Given) -> Iterator[Check]:
    """Yield the checks for both values of `backbone.train`, of which a backbone may support only one."""
    modes = [given.section["train"]] if "train" in given.section else ["lora", "full"]
    for mode in modes:
        other = [m for m in modes if m != mode]

        def make(mode: str = mode, other: list[str] = other) -> Backbone:
            return _made_for(build, mode, other)

        yield from (Check(f"{mode}-{check.name}", check.run) for check in backbone_checks(make, given.size))


def _made_for(build: _Builder, mode: str, other: list[str]) -> Backbone:
    """Build the backbone with `train: mode`. Raises SkipTest if it supports only one of the others."""

    def made(train: str) -> Backbone:
        settings: dict[str, Any] = {"checkpoint": NO_CHECKPOINT, "train": train}
        if train == "lora":
            settings["lora"] = {"rank": 2, "alpha": 4}
        found: Backbone = build(BackboneSection, settings, device=CPU)
        try:
            check_adapter(found)
        except UserError as error:
            raise NeedsInput(f"other input: {error}") from error
        return found

    try:
        return made(mode)
    except NeedsInput as error:
        for train in other:
            made(train)
            raise unittest.SkipTest(f"supports only `train: {train}`: {error.__cause__}") from error
        raise


def _objective(build: _Builder, given: Given) -> Iterator[Check]:
    def make() -> list[Objective]:
        return [build(ObjectiveSection, settings) for settings in OBJECTIVE_SETTINGS]

    return objective_checks(make)


def _reward(build: _Builder, given: Given) -> Iterator[Check]:
    """Yield the checks of RewardModel or GroupReward, depending on the base of the class."""
    try:
        compares = issubclass(build.registry.implementation(build.registry.find("reward", build.name)), GroupReward)
    except PluginError:  # reported by the checks of the declaration
        compares = False
    return (group_reward_checks if compares else reward_checks)(build.on_device, given.prompts)


_CHECKS: dict[str, Callable[[_Builder, Given], Iterator[Check]]] = {
    "backbone": _backbone,
    "sampler": lambda build, given: sampler_checks(build),
    "reward": _reward,
    "weighting": lambda build, given: weighting_checks(build),
    "timesteps": lambda build, given: timesteps_checks(build),
    "objective": _objective,
    "prompts": lambda build, given: prompts_checks(build),
    "suite": lambda build, given: suite_checks(build),
}
"""The checks of the engine's kinds. Plugins that define a kind provide its checks."""
