"""What training asks of a run's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_schemas.origin import BaseRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["RunStore"]


class RunStore:
    """As it is, it finds nothing and keeps nothing: what a process has that does not write. `RunDirectory` does."""

    def open(self, config: RunConfig, registry: Registry, *, resume: bool | None) -> tuple[bool, Checkpoint | None]:
        """Whether the run goes on (if `resume` is None: if it can), and from what. Raises UserError where that would
        continue another one or overwrite it."""
        return bool(resume), None

    def enter(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None, *,
        resume: bool, over: bool, accept_base: bool,
    ) -> list[str]:  # fmt: skip
        """Take it for the run, whose parts are all built; notes for people. Raises UserError as `open` does, and for
        other prompts or base weights than the run began with."""
        return []

    def recall(self, checkpoint: Checkpoint, *, accept_damage: bool) -> tuple[dict[str, Any], list[str]]:
        """Take the logs back to a checkpoint: what they say, for `RunState.restore`, and notes for people."""
        raise NotImplementedError("only what has checkpoints can be taken back to one")

    def describe(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None,
        times: Mapping[str, Any], *, start: Mapping[str, Any] | None = None, resumed: int | None = None,
    ) -> str | None:  # fmt: skip
        """Write down what the run is; a line about what a resume changed."""
        return None

    def save(self, *, trained_seconds: float, **state: Any) -> None:
        """Write a checkpoint of a state (`Checkpoints.save`), then drop old ones as `prune` does."""

    def prune(self, best: tuple[int, float] | None, spare: int | None) -> None:
        """Drop checkpoints but the newest, the best and the one before `spare`."""

    def set_clock(self, iteration: int, trained_seconds: float) -> None:
        """Have the checkpoint of an iteration vouch for timings.jsonl as it is now."""

    def checkpoint_paths(self) -> list[Path]:
        """Directories of the checkpoints, oldest first."""
        return []

    def release(self) -> None:
        """Let others have it."""
