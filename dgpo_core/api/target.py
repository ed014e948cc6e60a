"""The target of sampling, evaluation and export: a run directory, or a run file with its base model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.api.models import check_model
from dgpo_core.config.locations import located
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.config.presets import Preset
from dgpo_core.distributed.partitioning import partition_units
from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import check_sizes
from dgpo_core.storage.checkpoint import Checkpoints
from dgpo_core.storage.description import CONFIG, check_base, check_prompts, read_config, recorded_base, summary
from dgpo_core.storage.logs import damages
from dgpo_core.system.spelling import option, setting
from dgpo_core.training.engine import build_engine

if TYPE_CHECKING:
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.policy import ModelName
    from dgpo_core.training.rollout import RolloutSampler
    from dgpo_core.types import Prompt
    from dgpo_schemas.manifest import CheckpointManifest
    from dgpo_schemas.run import RunConfig

__all__ = ["Target", "open_target", "run_config"]

PLACE_OF_BASE = ("backbone.checkpoint", "backbone.revision")
"""Settings that may change for a run directory: the base model may be moved, and is verified by its digests."""


@dataclass(frozen=True)
class Target:
    """An engine with loaded weights, and the model in use: the policy instead of an EMA that has not moved yet.

    path: a run directory, or a run file; manifest: manifest of the loaded checkpoint, None for a run file; wanted: the
    requested model.
    """

    engine: Engine
    path: Path
    manifest: CheckpointManifest | None
    model: ModelName = "base"
    wanted: ModelName = "base"

    @property
    def run(self) -> Path | None:
        """The run directory; None for a run file."""
        return None if self.manifest is None else self.path

    @property
    def iteration(self) -> int:
        """Number of iterations that the weights were trained for."""
        return 0 if self.manifest is None or self.model == "base" else self.manifest.iteration

    @property
    def processes(self) -> Processes:
        """The processes that share the work; only the main process prints and writes."""
        return self.engine.runtime.processes

    def using(self, wanted: ModelName) -> Target:
        """Return the target with another model of the same weights. Raises UserError for a run file's trained ones."""
        if self.manifest is None and wanted != "base":
            raise UserError(
                f"{option('model', wanted)}: {self.path} is a run file, which has only its base model; name a run "
                "directory"
            )
        return replace(self, model="base" if wanted == "base" else self.engine.policy.available(wanted), wanted=wanted)

    @property
    def label(self) -> str:
        """A description of the model."""
        if self.manifest is None or self.model == "base":
            return f"base model of {self.path}"
        label = f"{self.model} weights of {self.path} after iteration {self.iteration}"
        if self.model != self.wanted:
            first = self.engine.config.objective.ema.first_move
            label += f" (its EMA does not move before update {first}; this is update {self.manifest.updates})"
        return label

    def put(self, checkpoint: Checkpoint) -> Target:
        """Load another checkpoint's weights and return the new target."""
        self.engine.load_weights(checkpoint)
        return replace(self, manifest=checkpoint.manifest)

    def report(self, notes: Iterable[str | None], on_message: Callable[[str], None]) -> None:
        """Report the notes that are not None, in the main process only."""
        for one in filter(None, notes if self.processes.main else ()):
            on_message(one)

    def checked(
        self, prompts: Sequence[Prompt], guidance: float | None, sides: tuple[int, int] | None = None
    ) -> list[Prompt]:
        """Return the prompts with their sizes; sides: (height, width) for prompts without a size.

        Raises UserError for prompts that the model cannot draw, and for an unsupported guidance scale."""
        self.engine.check_prompts(prompts)
        if sides is not None:
            check_sizes(self.engine.backbone, [], sides, option("size"))
            prompts = [prompt.sized(sides) for prompt in prompts]
        found = self.engine.sized(prompts)
        if guidance is not None:
            self.engine.check_guidance(option("guidance"), guidance)
        return found

    def share(
        self,
        rollout_sampler: RolloutSampler,
        prompts: Sequence[Prompt],
        members: int,
        on_message: Callable[[str], None],
    ) -> list[list[int]]:
        """Assign complete micro-batches to processes; returns the samples of each and reports idle processes."""
        batches, count = rollout_sampler.micro_batches(prompts, members), self.processes.count
        if len(batches) < count:
            smaller = f"{option('micro_batch')} makes batches smaller"
            self.report([f"{len(batches)} of {count} processes have samples to draw; {smaller}"], on_message)
        return partition_units(batches, count)

    def prompts(self, split: Literal["train", "heldout"]) -> list[Prompt]:
        """Load the prompts of a split, empty without held-out prompts. Raises UserError if they changed."""
        found = self.engine.load_prompts(split)
        if self.run is not None:
            mend = f", or name another file with {option('prompts')}"
            check_prompts(self.run, {split: summary(found)}, mend=mend)
        return found

    def base_files(self) -> dict[str, Any] | None:
        """Return the digests of the base model's files, by path; None if they are unknown."""
        base = self.engine.read_base()
        return None if base is None else base.model_dump(mode="json")["files"]


def open_target(
    path: Path,
    *,
    model: str | None = None,
    checkpoint: str = "newest",
    overrides: Sequence[str] = (),
    preset: Preset = None,
    accept: Collection[str] = (),
    alone: bool = False,
    on_message: Callable[[str], None],
) -> Target:
    """Open a run directory (by default its EMA) or a run file (its base model).

    checkpoint: "newest", "best" or an iteration. preset: presets of a run file. alone: do not share the work with other
    processes; a sharded model is loaded completely into CPU memory. on_message: called with changes since the run.

    Raises UserError for an unknown model or checkpoint, for a run directory whose files were edited, and for other base
    weights than at the start of the run, unless "base" is accepted.
    """
    from dgpo_core.plugins.registry import get_registry  # imported here because tests replace it

    if model is not None:
        check_model(model)
    run, registry = path.is_dir(), get_registry()
    if not run and path.exists() and model not in (None, "base"):
        raise UserError(
            f"{option('model', model)}: {path} is a run file, which has only its base model; name a run directory"
        )
    config = run_config(path, overrides, registry, preset=preset)
    if alone and config.run.shard:
        precision = config.precision.model_copy(update={"attention": "auto"})
        run_section = config.run.model_copy(update={"shard": False, "device": "cpu"})
        config = config.model_copy(update={"run": run_section, "precision": precision})
    found = Checkpoints(path / "checkpoints").find(checkpoint) if run else None
    if run:
        _check_base_is_there(path, config)
    engine = build_engine(config, registry, join=not alone)
    if found is None:
        return Target(engine, path, None)
    try:
        if engine.runtime.processes.main:
            _report_changes(path, engine, found, accept, on_message)
        engine.load_weights(found)
        return Target(engine, path, found.manifest).using(model or "ema")  # type: ignore[arg-type]
    except BaseException:
        engine.close()
        raise


def run_config(path: Path, overrides: Sequence[str], registry: Registry, *, preset: Preset = None) -> RunConfig:
    """Return the configuration of a run directory or a run file.

    Raises UserError for settings that cannot change for a run directory."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such run directory or run file")
        return load_run_config(path, overrides, registry, preset=preset)
    if not all(override.partition("=")[0].strip() in PLACE_OF_BASE for override in overrides):
        raise UserError(
            f"{option('overrides')} belongs to a run file; a run directory keeps the configuration it was trained with"
        )
    if preset is not None and preset != []:
        raise UserError(
            f"{option('preset')} belongs to a run file; a run directory keeps the configuration it was trained with"
        )
    return _config_of_run(path, overrides, registry)


def _config_of_run(path: Path, overrides: Sequence[str], registry: Registry) -> RunConfig:
    """Return a run directory's configuration, with the path of its base model from `overrides`."""
    config = read_config(path, registry)
    if not overrides:
        return config
    changed = load_run_config(path / CONFIG, overrides, registry=registry).backbone
    place = {"checkpoint": changed.checkpoint, "revision": changed.revision}
    return located(config.model_copy(update={"backbone": config.backbone.model_copy(update=place)}), registry)


def _check_base_is_there(path: Path, config: RunConfig) -> None:
    base = recorded_base(path)
    if base is not None and base.directory == config.backbone.checkpoint and not Path(base.directory).is_dir():
        raise UserError(
            f"{path}: its base model was in the directory {base.directory}, which no longer exists; if it was "
            f"moved, set its path: {setting('backbone.checkpoint', 'PATH')}"
        )


def _report_changes(
    path: Path, engine: Engine, found: Checkpoint, accept: Collection[str], on_message: Callable[[str], None]
) -> None:
    """Report changes since the run. Raises UserError for other base weights that are not accepted."""
    note = check_base(path, engine.read_base(), accept="base" in accept)
    if note is not None:
        on_message(note)
    for damage in damages(path, [(found.manifest, found.clock)]):
        if damage.path.name == "metrics.jsonl" and damage.path.exists():
            on_message(f"{damage}: the log is damaged, or {found.path} is a checkpoint of another run")
