"""How plugins are found: hook specifications and the light declarations they return.

A distribution names a module under the entry-point group `dgpo`; the module holds `@hookimpl` functions that
return `Part`s. Nothing heavy may be imported there: a part names its class by dotted path, imported when a run uses it.
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

__all__ = ["ENTRY_POINT_GROUP", "KINDS", "Part", "RunInfo", "hookimpl", "hookspec"]

ENTRY_POINT_GROUP = "dgpo"
hookspec = pluggy.HookspecMarker("dgpo")
hookimpl = pluggy.HookimplMarker("dgpo")


@dataclass(frozen=True, slots=True)
class Part:
    """A plugin's declaration of one part.

    name: what a run file writes after `use`; summary: one line; implementation: "package.module:Class";
    options: the pydantic model of its options (a subclass of dgpo_schemas.base.Options), or its dotted path.
    """

    name: str
    summary: str
    implementation: str
    options: type[Options] | str | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What observers are told of a run."""

    directory: Path
    config: RunConfig


KINDS: dict[str, str] = {
    "backbone": "dgpo_backbones",
    "sampler": "dgpo_samplers",
    "reward": "dgpo_rewards",
    "weighting": "dgpo_weightings",
    "timesteps": "dgpo_timestep_policies",
    "objective": "dgpo_objectives",
    "prompts": "dgpo_prompt_sources",
    "detector": "dgpo_detectors",
}
"""Kind of part to the hook that declares it."""


@hookspec
def dgpo_backbones() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare models to train; implementations are `contracts.Backbone`s."""


@hookspec
def dgpo_samplers() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare samplers; implementations are `contracts.Sampler`s."""


@hookspec
def dgpo_rewards() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare reward models; implementations are `contracts.RewardModel`s."""


@hookspec
def dgpo_weightings() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare advantage weightings; implementations are `contracts.AdvantageWeighting`s."""


@hookspec
def dgpo_timestep_policies() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare timestep policies; implementations are `contracts.TimestepPolicy`s."""


@hookspec
def dgpo_objectives() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare losses; implementations are `contracts.Objective`s."""


@hookspec
def dgpo_prompt_sources() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare prompt generators; implementations are `contracts.PromptSource`s."""


@hookspec
def dgpo_detectors() -> Sequence[Part]:  # type: ignore[empty-body]
    """Declare object detectors for rewards that look for objects (see dgpo-geneval's `Detector`)."""


@hookspec
def dgpo_places() -> Mapping[str, str]:  # type: ignore[empty-body]
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
