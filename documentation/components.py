"""One page for each kind of component: what is installed, its options, where it comes from, its license."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from dgpo_core.plugins.declared import RegisteredComponent
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.changes import declared
from dgpo_schemas.keys import keys_of
from documentation.keys import table

__all__ = ["component_pages"]

TITLES = {
    "backbone": "Backbones: model families",
    "sampler": "Samplers",
    "reward": "Rewards",
    "weighting": "Weightings",
    "objective": "Objectives",
    "timesteps": "Timestep policies",
    "prompts": "Prompt sources",
    "suite": "Suites",
}

BLOCK = "{use: NAME, options: {KEY: VALUE}}"
WRITTEN = {
    "backbone": "In a run file: `backbone: {use: NAME, checkpoint: CHECKPOINT, options: {KEY: VALUE}}`.",
    "sampler": f"In a run file: `rollout: {{sampler: {BLOCK}}}`, or without options `rollout: {{sampler: NAME}}`.",
    "reward": f"In a run file: `rewards: [{BLOCK}]`.",
    "weighting": f"In a run file: `weighting: {BLOCK}`, or without options `weighting: NAME`.",
    "objective": f"In a run file: `objective: {BLOCK}`.",
    "timesteps": f"In a run file: `timesteps: {BLOCK}`.",
    "prompts": f"In a run file: `prompts: {{train: {BLOCK}, heldout: {BLOCK}}}`.",
    "suite": "`dgpo evaluate RUN --suite NAME --suite-option NAME.KEY=VALUE`.",
}
"""How a component is named where it is used."""


def component_pages(registry: Registry) -> dict[str, str]:
    """Return {address on the site: Markdown}, one page for each kind that has components, and an index of them."""
    pages = {
        f"reference/components/{kind}.md": "\n".join(_page(registry, kind))
        for kind in registry.kinds
        if registry.components(kind)
    }
    rows = [
        f"| [{kind}]({kind}.md) | {', '.join(f'`{name}`' for name in registry.components(kind))} |"
        for kind in registry.kinds
        if registry.components(kind)
    ]
    head = [
        "# Components", "",
        "What a run file may name after `use`, from all distributions of this repository. `dgpo plugins list` shows",
        "what is installed, `dgpo plugins show NAME` the options of one. [Plugins](../../plugins.md) says how to write",
        "them.",
        "", "| kind | components |", "|---|---|",
    ]  # fmt: skip
    return pages | {"reference/components/index.md": "\n".join([*head, *rows, ""])}


def _page(registry: Registry, kind: str) -> Iterator[str]:
    yield from (f"# {TITLES.get(kind, kind.capitalize() + 's')}", "")
    contracts = [path.replace(":", ".") for path in registry.kinds[kind].contracts]
    if kind in WRITTEN:
        yield from (WRITTEN[kind], "")
    yield from (f"Implementations of {' or '.join(f'`{path}`' for path in contracts)}.", "")
    for name, component in sorted(registry.components(kind).items()):
        yield from _component(registry, name, component)


def _component(registry: Registry, name: str, registered: RegisteredComponent) -> Iterator[str]:
    model = registry.options_model(registered)
    resumed = declared(model)
    yield from (f"## {name}", "", f"{registered.component.summary.rstrip('.')}.", "")
    owner = registered.distribution
    yield f"From [{owner}]({_home(owner)}), license of the code: {_license(owner)}."
    yield ""
    if keys := keys_of(model):
        yield from table(keys, lambda key: resumed.get(key, "fixed"))
    else:
        yield "No options."
    yield ""


def _home(distribution: str) -> str:
    return "../../index.md" if distribution == "dgpo" else f"../../distributions/{distribution}.md"


def _license(distribution: str) -> str:
    """Of the code. Weights that a component loads have their own."""
    metadata = importlib.metadata.metadata(distribution)
    named = [metadata[field] for field in ("License-Expression", "License") if field in metadata]
    return str(named[0]) if named else "not stated"
