"""What `sample`, `evaluate` and `export` work on: a run directory, or a run file whose base model is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_core.engine import Engine
    from dgpo_core.policy import View

__all__ = ["Target", "open_target"]

VIEWS = ("base", "policy", "old", "slow")


@dataclass(frozen=True)
class Target:
    """An engine with weights in place, and which of its views is used: the policy for a slow EMA that has not moved."""

    engine: Engine
    view: View
    iteration: int
    label: str


def open_target(path: Path, *, view: str | None, checkpoint: str, overrides: Sequence[str] = ()) -> Target:
    """Open a run directory (its slow EMA unless another view is named) or a run file (its base).

    `checkpoint` is "newest", "best" or an iteration. Raises UserError naming what there is to choose from.
    """
    if view is not None and view not in VIEWS:
        raise UserError(f"--view {view}: choose one of {', '.join(VIEWS)}")
    if path.is_dir() and overrides:
        raise UserError("--set belongs to a run file; a run directory keeps the configuration it was trained with")
    if not path.exists():
        raise UserError(f"{path}: there is no such run directory or run file")
    if not path.is_dir() and view not in (None, "base"):
        raise UserError(f"--view {view}: {path} is a run file, which has only its base model; name a run directory")
    from dgpo_core.config import load_run_config
    from dgpo_core.registry import get_registry

    registry = get_registry()
    config = load_run_config(path / "config.yaml", registry=registry) if (path / "config.yaml").is_file() else None
    if config is None:
        if path.is_dir():
            raise UserError(f"{path}: not a run directory (it has no config.yaml)")
        config = load_run_config(path, overrides, registry=registry)
    from dgpo_core.engine import Engine

    engine = Engine(config, registry)
    if not path.is_dir():
        return Target(engine, "base", 0, f"base model of {path}")
    from dgpo_core.checkpoint import Checkpoints

    found = Checkpoints(path / "checkpoints").find(checkpoint)
    engine.load_weights(found)
    wanted: View = view or "slow"  # type: ignore[assignment]
    if wanted == "base":
        return Target(engine, wanted, 0, f"base model of {path}")
    iteration = found.manifest.iteration
    chosen = engine.policy.available(wanted)
    label = f"{chosen} weights of {path} after iteration {iteration}"
    if chosen != wanted:
        first = engine.config.objective.ema.slow.first_move
        label += f" (its slow EMA does not move before update {first}; this is update {found.manifest.updates})"
    return Target(engine, chosen, iteration, label)
