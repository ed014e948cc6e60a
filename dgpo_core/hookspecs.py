"""How plugins are found: hook specifications and the light declarations they return.

A distribution names a module under the entry-point group `dgpo`; the module holds `@hookimpl` functions that return
`Component`s, `Command`s and `Kind`s. Nothing heavy may be imported there: a component names its class by dotted path,
imported when a run uses it, and a command its function, imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from dgpo_schemas.base import Options
    from dgpo_schemas.run import RunConfig

__all__ = ["ENTRY_POINT_GROUP", "KINDS", "Command", "Component", "Kind", "RunInfo", "hookimpl", "hookspec"]

ENTRY_POINT_GROUP = "dgpo"
hookspec = pluggy.HookspecMarker("dgpo")
hookimpl = pluggy.HookimplMarker("dgpo")


@dataclass(frozen=True, slots=True)
class Component:
    """A plugin's declaration of one component.

    name: what a run file writes after `use`; summary: one line; implementation: "package.module:Class";
    options: the pydantic model of its options (a subclass of dgpo_schemas.base.Options), or its dotted path;
    adapts: of a reward that shows media to the reward in its option `reward`: what it is shown, and what that one is,
    such as ("video", "image").
    """

    name: str
    summary: str
    implementation: str
    options: type[Options] | str | None = None
    adapts: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A plugin's declaration of a command of `dgpo`.

    name: a word, or two for a command of a family, such as "plugins list"; summary: one line for `dgpo --help`;
    target: "package.module:attribute", a function with Typer's annotations or a Typer application, imported when the
    command is called, or nothing for the family itself; order: smaller ones are listed first.
    """

    name: str
    summary: str
    target: str = ""
    order: int = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of components, of the engine or of a plugin whose own components use them.

    name: what run files and messages call it; a component's option of this name (`detector: Use`) chooses one of its
    components; hook: `dgpo_...`, by which plugins declare such components; contracts: "package.module:Class", of one of
    which an implementation derives; noun: what messages call a part of it, by default the name; checks: for `dgpo
    plugins check`: "package.module:function", called with what builds the component (no arguments) and returning
    `dgpo_kit.contracts.Check`s; template: for `dgpo plugins new`: "package:directory" in that package."""

    name: str
    hook: str
    contracts: tuple[str, ...]
    noun: str = ""
    checks: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What observers are told of a run."""

    directory: Path
    config: RunConfig


def _kind(name: str, hook: str, *contracts: str, noun: str = "") -> Kind:
    return Kind(name, hook, tuple(f"dgpo_core.contracts:{one}" for one in contracts), noun)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("backbone", "dgpo_backbones", "Backbone"),
        _kind("sampler", "dgpo_samplers", "Sampler"),
        _kind("reward", "dgpo_rewards", "RewardModel", "GroupReward"),
        _kind("weighting", "dgpo_weightings", "AdvantageWeighting"),
        _kind("timesteps", "dgpo_timestep_policies", "TimestepPolicy", noun="timestep policy"),
        _kind("objective", "dgpo_objectives", "Objective"),
        _kind("prompts", "dgpo_prompt_sources", "PromptSource", noun="prompt source"),
    )
}
"""The engine's own kinds; `Registry.kinds` has those of plugins too. The hook of a kind takes nothing and returns a
sequence of Components."""


@hookspec
def dgpo_kinds() -> Sequence[Kind]:  # type: ignore[empty-body]
    """Declare kinds of parts of your own; plugins that do are registered before the others."""


@hookspec
def dgpo_commands() -> Sequence[Command]:  # type: ignore[empty-body]
    """Declare commands of the command line."""


@hookspec
def dgpo_reward_transports() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Declare places where rewards run besides this process: the key of a reward's block, such as `worker`, to the
    dotted path "package.module:connect" of a function that is called as `dgpo_core.rewards.Connect` says."""


@hookspec
def dgpo_run_started(run: RunInfo) -> None:
    """Called once when a run starts or resumes, before its first iteration."""


@hookspec
def dgpo_iteration_finished(run: RunInfo, iteration: int, metrics: Mapping[str, Any]) -> None:
    """Called after each iteration (counted from 1) with its metrics; it must not change them."""


@hookspec
def dgpo_run_finished(run: RunInfo, outcome: str) -> None:
    """Called once when a run ends: outcome is "finished", "interrupted" or "failed"."""


def __getattr__(name: str) -> Any:
    """Raises RenamedError for a name of an older version of the contract, AttributeError for any other."""
    from dgpo_core.contracts.version import renamed_declaration
    from dgpo_core.errors import RenamedError

    if (message := renamed_declaration(name)) is not None:
        raise RenamedError(message)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
