"""Select the components that `dgpo plugins check` checks, with their options, prompts and checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.errors import UserError
from dgpo_kit import Given
from dgpo_schemas.problems import nearest

if TYPE_CHECKING:
    from dgpo_core.plugins.declared import RegisteredComponent
    from dgpo_core.plugins.registry import Registry
    from dgpo_kit.contracts import Check
    from dgpo_schemas.run import RunConfig

__all__ = ["Target", "choose"]

Key = tuple[str, str]
"""Kind and name of a component."""
PROMPTS = 4
"""Number of a run's prompts to check its rewards with, which may be slow."""


@dataclass(frozen=True, slots=True)
class Target:
    """A distribution, or a component named "KIND NAME", with its checks."""

    name: str
    checks: list[Check]


def choose(
    registry: Registry,
    names: Sequence[str],
    *,
    kind: str | None,
    distribution: str | None,
    options: Sequence[str],
    config: Path | None,
    prompts: Path | None,
    checkpoint: str | None = None,
) -> list[Target]:
    """Return the selected distributions, each followed by its selected components. Raises UserError for bad
    arguments."""
    if not (names or kind or distribution or config):
        raise UserError("name the components to check, or set --kind, --distribution or --config")
    run = {} if config is None else _given_by(config, registry)
    unloaded = _unloaded(registry, names, distribution)
    rest = [name for name in names if name not in unloaded]
    keys = set(run) if config and not names else None
    components = [] if names and not rest else list(_select(registry, rest, kind, distribution, keys))
    given = {
        (component.kind, component.component.name): run.get((component.kind, component.component.name), Given())
        for component in components
    }
    _add_options(given, options)
    _add_prompts(given, prompts)
    _add_checkpoint(given, checkpoint)
    owners = [p.distribution for p in components] or ([_named(registry, distribution)] if distribution else [])
    return list(_targets(registry, components, given, dict.fromkeys([*unloaded.values(), *owners])))


def _unloaded(registry: Registry, names: Sequence[str], distribution: str | None) -> dict[str, str]:
    """Map names that are not loaded components, but match a plugin that failed to load, to the plugin's distribution.

    Components are usually named like their plugin, and the checks of the distribution report why it failed to load.
    """
    from dgpo_kit.collecting import normal

    unloaded = {}
    for name in names:
        if any(name in registry.components(kind) for kind in registry.kinds):
            continue
        for broken in registry.broken:
            known = {normal(broken.entry_point), normal(broken.distribution)}
            if known & {normal(name), normal(f"dgpo-{name}")} and distribution in (None, broken.distribution):
                unloaded[name] = broken.distribution
    return unloaded


def _targets(
    registry: Registry, components: Sequence[RegisteredComponent], given: Mapping[Key, Given], owners: Mapping[str, Any]
) -> Iterator[Target]:
    from dgpo_kit.contracts import component_checks, distribution_checks

    for owner in owners:
        yield Target(owner, list(distribution_checks(registry, owner)))
        for component in components:
            if component.distribution == owner:
                kind, name = component.kind, component.component.name
                yield Target(f"{kind} {name}", list(component_checks(registry, kind, name, given[kind, name])))


# -- selection ------------------------------------------------------------------------------------------------------


def _select(
    registry: Registry, names: Sequence[str], kind: str | None, distribution: str | None, keys: set[Key] | None
) -> Iterator[RegisteredComponent]:
    """Yield the components that meet all conditions, by kind and name."""
    if kind is not None:
        registry.kind(kind, "--kind")
    owner = None if distribution is None else _named(registry, distribution)
    selected = [
        component
        for each in ([kind] if kind else registry.kinds)
        for component in registry.components(each).values()
        if owner in (None, component.distribution)
        and (keys is None or (each, component.component.name) in keys)
        and (not names or component.component.name in names)
    ]
    for name in names:
        if not any(component.component.name == name for component in selected):
            _unknown(registry, name, kind, owner)
    for component in selected:  # a component for another contract version would fail every check
        registry.check_contract(component)
    yield from selected


def _named(registry: Registry, distribution: str) -> str:
    from dgpo_kit.collecting import distribution_named

    try:
        return distribution_named(registry, distribution)
    except UserError as error:
        raise UserError(f"--distribution {distribution}: {error}") from error


def _unknown(registry: Registry, name: str, kind: str | None, owner: str | None) -> None:
    """Raise UserError for a name that no selected component has."""
    if owner is None:
        registry.named(name, kind)
    known = {
        c.component.name
        for each in registry.kinds
        for c in registry.components(each).values()
        if c.distribution == owner
    }
    raise UserError(
        f"{owner} has no component {name!r}{nearest(name, known)} (it has: {', '.join(sorted(known)) or 'none'})"
    )


# -- input ----------------------------------------------------------------------------------------------------------


def _add_options(given: dict[Key, Given], options: Sequence[str]) -> None:
    if not options:
        return
    if len(given) != 1:
        selected = ", ".join(" ".join(key) for key in given)
        raise UserError(
            f"--option: requires a single component, but {len(given)} are selected ({selected}); name only one"
        )
    ((key, before),) = given.items()
    given[key] = replace(before, options={**before.options, **_parse(options)})


def _parse(options: Sequence[str]) -> dict[str, Any]:
    """Merge `KEY=VALUE` settings and JSON objects into one mapping."""
    from dgpo_core.config.overrides import apply_overrides
    from dgpo_schemas.loading import Document
    from dgpo_schemas.prompts import loads, unreadable

    merged: dict[str, Any] = {}
    settings = []
    for option in options:
        if not option.lstrip().startswith("{"):
            settings.append(option)
            continue
        try:
            value = loads(option)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--option {option}: is not valid JSON: {error}") from error
        reason = unreadable(value)
        if reason:
            raise UserError(f"--option {option}: {reason}")
        merged |= value
    document = apply_overrides(
        Document("--option", {"options": merged}, {}), settings, flag="--option", under="options."
    )  # fmt: skip
    parsed: dict[str, Any] = document.data["options"]
    return parsed


def _add_prompts(given: dict[Key, Given], path: Path | None) -> None:
    if path is None:
        return
    from dgpo_core.data.prompts import load_file

    rewards = [key for key in given if key[0] == "reward"]
    if not rewards:
        raise UserError(f"--prompts {path}: applies to rewards only, and no reward is selected")
    loaded = load_file(path)
    for key in rewards:
        given[key] = replace(given[key], prompts=loaded)


def _add_checkpoint(given: dict[Key, Given], checkpoint: str | None) -> None:
    if checkpoint is None:
        return
    backbones = [key for key in given if key[0] == "backbone"]
    if not backbones:
        raise UserError(f"--checkpoint {checkpoint}: applies to backbones only, and no backbone is selected")
    for key in backbones:
        given[key] = replace(given[key], section={**given[key].section, "checkpoint": checkpoint})


def _given_by(path: Path, registry: Registry) -> dict[Key, Given]:
    """Return the components of a run file with its options and sections."""
    from dgpo_core.config.pipeline import load_run_config

    config = load_run_config(path, registry=registry)
    rewards = [*config.rewards, *(config.evaluation.rewards or ())]
    prompts = _some_prompts(config, registry)
    found: dict[Key, Given] = {
        ("sampler", config.rollout.sampler.use): Given(config.rollout.sampler.options),
        ("weighting", config.weighting.use): Given(config.weighting.options),
        ("timesteps", config.timesteps.use): Given(config.timesteps.options),
        ("objective", config.objective.use): Given(config.objective.options),
    }
    backbone = config.backbone
    section = backbone.model_dump(exclude={"use", "options"})
    found["backbone", backbone.use] = Given(backbone.options, section=section, size=config.rollout.height_width)
    for block in [*config.prompts.blocks("train"), *config.prompts.blocks("heldout")]:
        if block.use is not None:
            found["prompts", block.use] = Given(block.options)
    for reward in rewards:
        found["reward", reward.use] = Given(reward.options, prompts=prompts)
        for kind in registry.kinds:
            chosen = reward.options.get(kind)  # an option named like a kind selects a component of that kind
            if isinstance(chosen, dict) and "use" in chosen:
                found[kind, chosen["use"]] = Given(chosen.get("options", {}))
    return found


def _some_prompts(config: RunConfig, registry: Registry) -> list[Any]:
    from dgpo_core.data.prompts import load_sources, some_of_each

    split: Literal["train", "heldout"] = "heldout" if config.prompts.heldout else "train"
    return some_of_each(load_sources(config.prompts, split, registry), PROMPTS)
