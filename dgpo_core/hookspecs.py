"""Hook specifications of plugins, and the declarations that the hooks return.

A distribution names a module in the entry-point group `dgpo`. The module defines `@hookimpl` functions that return
`Component`s, `Command`s and `Kind`s. It must not import heavy packages: components and commands name their class or
function by dotted path, which is imported only when a run uses it or the command is called.
"""

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
    """Declaration of a component.

    name: the value of `use` in a run file.
    summary: one line.
    implementation: "package.module:Class".
    options: pydantic model of the options (a subclass of `dgpo_schemas.base.Options`), or its dotted path.
    adapts: for a reward that converts media and passes them to the reward in its option `reward`: the media types
    (input, output), such as ("video", "image").
    tiny: "package.module:function", which writes a tiny random checkpoint of the component into a directory, its only
    argument, for `dgpo plugins tiny`; empty if there is none.
    """

    name: str
    summary: str
    implementation: str
    options: type[Options] | str | None = None
    adapts: tuple[str, str] | None = None
    tiny: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """Declaration of a `dgpo` command.

    name: one word, or two for a subcommand, such as "plugins list".
    summary: one line for `dgpo --help`.
    target: "package.module:attribute", a function with Typer annotations or a Typer application, imported when the
    command is called; empty for a command group.
    order: sort key in `dgpo --help`, ascending.
    """

    name: str
    summary: str
    target: str = ""
    order: int = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component, defined by the engine or by a plugin.

    name: name in run files and messages. An option of this name (`detector: Use`) of another component selects a
    component of this kind.
    hook: name of the hook, `dgpo_...`, with which plugins declare components of this kind.
    contracts: base classes, "package.module:Class"; an implementation derives from one of them.
    noun: noun for a component of this kind in messages, by default the name.
    checks: "package.module:function", used by `dgpo plugins check`. Receives a function without arguments that
    builds the component, and returns `dgpo_kit.contracts.Check`s.
    template: "package:directory", used by `dgpo plugins new`.
    """

    name: str
    hook: str
    contracts: tuple[str, ...]
    noun: str = ""
    checks: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Run information passed to observer hooks: the run directory and the run file."""

    directory: Path
    config: RunConfig


def _kind(name: str, hook: str, *contracts: str, noun: str = "") -> Kind:
    return Kind(name, hook, tuple(f"dgpo_core.contracts:{contract}" for contract in contracts), noun)


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
        _kind("suite", "dgpo_suites", "Suite"),
    )
}
"""The engine's kinds; `Registry.kinds` also contains those of plugins. The hook of a kind takes no arguments and
returns a sequence of Components."""


@hookspec
def dgpo_kinds() -> Sequence[Kind]:  # type: ignore[empty-body]
    """Declare additional kinds of components. Plugins with this hook are registered before the others."""


@hookspec
def dgpo_commands() -> Sequence[Command]:  # type: ignore[empty-body]
    """Declare commands of the `dgpo` command line."""


@hookspec
def dgpo_reward_transports() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Declare transports to rewards that run outside this process.

    Maps a key of a reward's section, such as `worker`, to "package.module:connect", a function with the signature
    `dgpo_core.rewards.Connect`.
    """


@hookspec
def dgpo_run_started(run: RunInfo) -> None:
    """Called once when a run starts or resumes, before the first iteration."""


@hookspec
def dgpo_iteration_finished(run: RunInfo, iteration: int, metrics: Mapping[str, Any]) -> None:
    """Called after each iteration (counted from 1) with its metrics. Must not modify the metrics."""


@hookspec
def dgpo_run_finished(run: RunInfo, outcome: str) -> None:
    """Called once when a run ends. outcome: "finished", "interrupted" or "failed"."""


def __getattr__(name: str) -> Any:
    """Raises RenamedError for a name of an older version of the contract, AttributeError for any other."""
    from dgpo_core.contracts.version import renamed_declaration
    from dgpo_core.errors import RenamedError

    if (message := renamed_declaration(name)) is not None:
        raise RenamedError(message)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
