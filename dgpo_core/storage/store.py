"""The interface to a run directory that training uses."""

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
    """Base class that reads and writes nothing, for ranks that do not write. `RunDirectory` implements it."""

    def open(self, config: RunConfig, registry: Registry, *, resume: bool | None) -> tuple[bool, Checkpoint | None]:
        """Return whether to resume the run (if `resume` is None: if possible), and its checkpoint.

        Raises UserError if this would continue or overwrite another run.
        """
        return bool(resume), None

    def enter(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None, *,
        resume: bool, over: bool, accept_base: bool,
    ) -> list[str]:  # fmt: skip
        """Claim the directory once all components are built. Returns notes for the user.

        Raises UserError like `open`, and if prompts or base weights differ from those at the start of the run.
        """
        return []

    def recall(self, checkpoint: Checkpoint, *, accept_damage: bool) -> tuple[dict[str, Any], list[str]]:
        """Rewind the logs to a checkpoint. Returns their content, for `RunState.restore`, and notes for the user."""
        raise NotImplementedError("this store has no checkpoints")

    def describe(
        self, config: RunConfig, registry: Registry, prompts: Mapping[str, Any], base: BaseRecord | None,
        times: Mapping[str, Any], *, start: Mapping[str, Any] | None = None, resumed: int | None = None,
    ) -> str | None:  # fmt: skip
        """Write the metadata of the run. Returns a line about settings that a resume changed, or None."""
        return None

    def save(self, *, trained_seconds: float, **state: Any) -> None:
        """Write a checkpoint (`Checkpoints.save`), then delete old ones like `prune`."""

    def prune(self, best: tuple[int, float] | None, spare: int | None) -> None:
        """Delete checkpoints except the newest, the best and the last one before `spare`."""

    def set_clock(self, iteration: int, trained_seconds: float) -> None:
        """Update the clock of an iteration's checkpoint for the current timings.jsonl."""

    def checkpoint_paths(self) -> list[Path]:
        """Return the directories of the checkpoints, oldest first."""
        return []

    def release(self) -> None:
        """Release the directory."""
