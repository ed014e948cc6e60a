"""What sampling, evaluation and export work on: a run directory, or a run file whose base model is meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.api.models import check_model
from dgpo_core.config.locations import located
from dgpo_core.config.pipeline import load_run_config
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
"""What may be another for a run directory: it may have been moved, and digests tell whether it is the same model."""


@dataclass(frozen=True)
class Target:
    """An engine with weights in place, and which of its models is used: the policy for an EMA that has not moved.

    path: a run directory, or a run file; manifest: of the checkpoint whose weights are in place, None for a run file;
    wanted: the model that was asked for.
    """

    engine: Engine
    path: Path
    manifest: CheckpointManifest | None
    model: ModelName = "base"
    wanted: ModelName = "base"

    @property
    def run(self) -> Path | None:
        """The run's directory, if it is one's."""
        return None if self.manifest is None else self.path

    @property
    def iteration(self) -> int:
        """Iterations that the weights were trained for."""
        return 0 if self.manifest is None or self.model == "base" else self.manifest.iteration

    @property
    def processes(self) -> Processes:
        """Those that share the work; the main one alone prints and writes."""
        return self.engine.runtime.processes

    def using(self, wanted: ModelName) -> Target:
        """The same weights, of which this model is used."""
        if self.manifest is None and wanted != "base":
            raise UserError(
                f"{option('model', wanted)}: {self.path} is a run file, which has only its base model; name a run "
                "directory"
            )
        return replace(self, model="base" if wanted == "base" else self.engine.policy.available(wanted), wanted=wanted)

    @property
    def label(self) -> str:
        """What is used, for people."""
        if self.manifest is None or self.model == "base":
            return f"base model of {self.path}"
        label = f"{self.model} weights of {self.path} after iteration {self.iteration}"
        if self.model != self.wanted:
            first = self.engine.config.objective.ema.first_move
            label += f" (its EMA does not move before update {first}; this is update {self.manifest.updates})"
        return label

    def put(self, checkpoint: Checkpoint) -> Target:
        """The engine with another checkpoint's weights in place."""
        self.engine.load_weights(checkpoint)
        return replace(self, manifest=checkpoint.manifest)

    def report(self, notes: Iterable[str | None], on_message: Callable[[str], None]) -> None:
        """Tell what there is of notes, once, whatever the number of processes."""
        for one in filter(None, notes if self.processes.main else ()):
            on_message(one)

    def checked(
        self, prompts: Sequence[Prompt], guidance: float | None, sides: tuple[int, int] | None = None
    ) -> list[Prompt]:
        """Prompts with the sizes that they are drawn in; sides: of those that have none of their own. Raises UserError
        for what the model cannot draw, and for a guidance that it cannot have."""
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
        """The samples of each process, in whole micro-batches; says so if some processes have none."""
        batches, count = rollout_sampler.micro_batches(prompts, members), self.processes.count
        if len(batches) < count:
            smaller = f"{option('micro_batch')} makes batches smaller"
            self.report([f"{len(batches)} of {count} processes have samples to draw; {smaller}"], on_message)
        return partition_units(batches, count)

    def prompts(self, split: Literal["train", "heldout"]) -> list[Prompt]:
        """The target's own; empty if there are no held-out ones. Raises UserError if a run began with others."""
        found = self.engine.load_prompts(split)
        if self.run is not None:
            mend = f", or name the file that you mean with {option('prompts')}"
            check_prompts(self.run, {split: summary(found)}, mend=mend)
        return found

    def base_files(self) -> dict[str, Any] | None:
        """Digests of the files that the base model was read from, by path; None if they are not known."""
        base = self.engine.read_base()
        return None if base is None else base.model_dump(mode="json")["files"]


def open_target(
    path: Path,
    *,
    model: str | None = None,
    checkpoint: str = "newest",
    overrides: Sequence[str] = (),
    preset: str | None = None,
    accept: Collection[str] = (),
    alone: bool = False,
    on_message: Callable[[str], None],
) -> Target:
    """Open a run directory (its EMA unless another model is named) or a run file (its base).

    `checkpoint` is "newest", "best" or an iteration. Raises UserError naming what there is to choose from, for a run
    directory whose files are not as they were written, and for base weights that are not those that the run began with,
    unless "base" is accepted. preset: of a run file. alone: this process does not share the work with others, nor a
    sharded model: it is loaded completely, into the CPU's memory. on_message: receives what has changed since the run.
    """
    from dgpo_core.plugins.registry import get_registry  # where tests put one of their own

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


def run_config(path: Path, overrides: Sequence[str], registry: Registry, *, preset: str | None = None) -> RunConfig:
    """The configuration of a run directory or a run file. Raises UserError for settings that a directory cannot
    change."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such run directory or run file")
        return load_run_config(path, overrides, registry, preset=preset)
    if not all(override.partition("=")[0].strip() in PLACE_OF_BASE for override in overrides):
        raise UserError(
            f"{option('overrides')} belongs to a run file; a run directory keeps the configuration it was trained with"
        )
    return _config_of_run(path, overrides, registry)


def _config_of_run(path: Path, overrides: Sequence[str], registry: Registry) -> RunConfig:
    """A run directory's configuration, its base model where `overrides` say that it is now."""
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
            f"{path}: its base model was in the directory {base.directory}, which is not there any more; if it was "
            f"moved, say where it is: {setting('backbone.checkpoint', 'PATH')}"
        )


def _report_changes(
    path: Path, engine: Engine, found: Checkpoint, accept: Collection[str], on_message: Callable[[str], None]
) -> None:
    """Say what is not as the run left it. Raises UserError for other base weights that are not accepted."""
    note = check_base(path, engine.read_base(), accept="base" in accept)
    if note is not None:
        on_message(note)
    for damage in damages(path, [(found.manifest, found.clock)]):
        if damage.path.name == "metrics.jsonl" and damage.path.exists():
            on_message(f"{damage}: the log is damaged, or {found.path} is a checkpoint of another run")
