"""What `sample`, `evaluate` and `export` work on: a run directory, or a run file whose base model is meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.policy import View
    from dgpo_core.types import Prompt

__all__ = ["Target", "open_target"]

VIEWS = ("base", "policy", "old", "slow")
PLACE_OF_BASE = ("backbone.checkpoint", "backbone.revision")
"""What may be another for a run directory: it may have been moved, and digests tell whether it is the same model."""


@dataclass(frozen=True)
class Target:
    """An engine with weights in place, and which of its views is used: the policy for a slow EMA that has not moved."""

    engine: Engine
    view: View
    iteration: int
    label: str
    run: Path | None = None
    """The run's directory, if it is one's."""

    def prompts(self, split: Literal["train", "heldout"]) -> list[Prompt]:
        """The target's own; empty if there are no held-out ones. Raises UserError if a run began with others."""
        found = self.engine.load_prompts(split)
        if self.run is not None:
            from dgpo_core.storage.description import check_prompts, summary

            check_prompts(self.run, {split: summary(found)}, mend=", or name the file that you mean with --prompts")
        return found

    def base_files(self) -> dict[str, Any] | None:
        """Digests of the files that the base model was read from, by path; None if they are not known."""
        base = self.engine.read_base()
        return None if base is None else base.model_dump(mode="json")["files"]


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def open_target(
    path: Path,
    *,
    view: str | None,
    checkpoint: str,
    overrides: Sequence[str] = (),
    accept: Collection[str] = (),
    tell: Callable[[str], None] = _to_stderr,
) -> Target:
    """Open a run directory (its slow EMA unless another view is named) or a run file (its base).

    `checkpoint` is "newest", "best" or an iteration. Raises UserError naming what there is to choose from, for a run
    directory whose files are not as they were written, and for base weights that are not those that the run began with,
    unless "base" is accepted.
    """
    if view is not None and view not in VIEWS:
        raise UserError(f"--view {view}: choose one of {', '.join(VIEWS)}")
    elsewhere = all(override.partition("=")[0].strip() in PLACE_OF_BASE for override in overrides)
    if path.is_dir() and not elsewhere:
        raise UserError("--set belongs to a run file; a run directory keeps the configuration it was trained with")
    if not path.exists():
        raise UserError(f"{path}: there is no such run directory or run file")
    if not path.is_dir() and view not in (None, "base"):
        raise UserError(f"--view {view}: {path} is a run file, which has only its base model; name a run directory")
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    if not path.is_dir():
        from dgpo_core.training.engine import build_engine

        config = load_run_config(path, overrides, registry=registry)
        return Target(build_engine(config, registry), "base", 0, f"base model of {path}")
    from dgpo_core.config.locations import located
    from dgpo_core.storage.description import CONFIG, read_config
    from dgpo_core.storage.logs import damages

    config = read_config(path, registry)
    if overrides:
        changed = load_run_config(path / CONFIG, overrides, registry=registry).backbone
        place = {"checkpoint": changed.checkpoint, "revision": changed.revision}
        config = located(config.model_copy(update={"backbone": config.backbone.model_copy(update=place)}), registry)
    from dgpo_core.storage.checkpoint import Checkpoints
    from dgpo_core.storage.description import check_base, recorded_base
    from dgpo_core.training.engine import build_engine

    found = Checkpoints(path / "checkpoints").find(checkpoint)
    base = recorded_base(path)
    if base is not None and base.directory == config.backbone.checkpoint and not Path(base.directory).is_dir():
        raise UserError(
            f"{path}: its base model was in the directory {base.directory}, which is not there any more; if it was "
            "moved, say where it is: --set backbone.checkpoint=PATH"
        )
    engine = build_engine(config, registry)
    note = check_base(path, engine.read_base(), accept="base" in accept)
    if note is not None:
        tell(f"note: {note}")
    for damage in damages(path, [(found.manifest, found.clock)]):
        if damage.path.name == "metrics.jsonl" and damage.path.exists():
            tell(f"note: {damage}: the log is damaged, or {found.path} is a checkpoint of another run")
    engine.load_weights(found)
    wanted: View = view or "slow"  # type: ignore[assignment]
    if wanted == "base":
        return Target(engine, wanted, 0, f"base model of {path}", path)
    iteration = found.manifest.iteration
    chosen = engine.policy.available(wanted)
    label = f"{chosen} weights of {path} after iteration {iteration}"
    if chosen != wanted:
        first = engine.config.objective.ema.slow.first_move
        label += f" (its slow EMA does not move before update {first}; this is update {found.manifest.updates})"
    return Target(engine, chosen, iteration, label, path)
