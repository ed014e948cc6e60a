"""What `sample`, `evaluate` and `export` work on: a run directory, or a run file whose base model is meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.policy import ModelName
    from dgpo_core.training.rollout import RolloutSampler
    from dgpo_core.types import Prompt
    from dgpo_schemas.run import RunConfig

__all__ = ["Target", "open_target", "working_on"]

MODELS = ("base", "policy", "ema_fast", "ema")
PLACE_OF_BASE = ("backbone.checkpoint", "backbone.revision")
"""What may be another for a run directory: it may have been moved, and digests tell whether it is the same model."""


@dataclass(frozen=True)
class Target:
    """An engine with weights in place, and which of its views is used: the policy for a EMA that has not moved."""

    engine: Engine
    model: ModelName
    iteration: int
    label: str
    run: Path | None = None
    """The run's directory, if it is one's."""

    @property
    def processes(self) -> Processes:
        """Those that share the work; the main one alone prints and writes."""
        return self.engine.runtime.processes

    def note(self, notes: Iterable[str | None]) -> None:
        """Print what there is of notes on standard error, once, whatever the number of processes."""
        for one in filter(None, notes if self.processes.main else ()):
            typer.echo(f"note: {one}", err=True)

    def checked(
        self, prompts: Sequence[Prompt], guidance: float | None, sides: tuple[int, int] | None = None
    ) -> list[Prompt]:
        """Prompts with the sizes that they are drawn in; sides: of those that have none of their own. Raises UserError
        for what the model cannot draw, and for a --guidance that it cannot have."""
        self.engine.check_prompts(prompts)
        if sides is not None:
            from dgpo_core.flow.sizes import check_sizes

            check_sizes(self.engine.backbone, [], sides, "--size")
            prompts = [prompt.sized(sides) for prompt in prompts]
        found = self.engine.sized(prompts)
        if guidance is not None:
            self.engine.check_guidance("--guidance", guidance)
        return found

    def share(self, rollout_sampler: RolloutSampler, prompts: Sequence[Prompt], members: int) -> list[list[int]]:
        """The samples of each process, in whole micro-batches; says so if some processes have none."""
        from dgpo_core.distributed.partitioning import partition_units

        batches, count = rollout_sampler.micro_batches(prompts, members), self.processes.count
        if len(batches) < count:
            self.note(
                [f"{len(batches)} of {count} processes have samples to draw; --micro-batch makes batches smaller"]
            )
        return partition_units(batches, count)

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


@contextmanager
def working_on(
    context: typer.Context,
    path: Path,
    *,
    model: str | None,
    checkpoint: str,
    overrides: Sequence[str] | None,
    accept: Collection[str] | None,
    micro_batch: int | None,
    processes: int,
) -> Iterator[Target]:
    """An opened target (`open_target`), closed at the end; in several processes, each of which comes here, if the
    command of `context` was asked for them. None of them has the whole result before the others have done their part.
    """
    from dgpo_cli.launch import in_processes, left_to_launcher
    from dgpo_core.plugins.isolation import printing_aside

    in_processes(context, processes)
    with left_to_launcher(), printing_aside():  # standard output is for the result, whatever a reward prints
        opened = open_target(
            path, model=model, checkpoint=checkpoint, overrides=overrides or (), accept=accept or (),
            micro_batch=micro_batch,
        )  # fmt: skip
        try:
            yield opened
        finally:
            opened.engine.close()


def open_target(
    path: Path,
    *,
    model: str | None,
    checkpoint: str,
    overrides: Sequence[str] = (),
    accept: Collection[str] = (),
    micro_batch: int | None = None,
    alone: bool = False,
    on_message: Callable[[str], None] = lambda line: typer.echo(line, err=True),
) -> Target:
    """Open a run directory (its EMA unless another view is named) or a run file (its base).

    `checkpoint` is "newest", "best" or an iteration. Raises UserError naming what there is to choose from, for a run
    directory whose files are not as they were written, and for base weights that are not those that the run began with,
    unless "base" is accepted. micro_batch: instead of the run file's. alone: this process does not share the work with
    others, nor a model that `run.shard` spreads: it is whole, in the CPU's memory.
    """
    run = path.is_dir()
    if model is not None and model not in MODELS:
        raise UserError(f"--model {model}: choose one of {', '.join(MODELS)}")
    if run and not all(override.partition("=")[0].strip() in PLACE_OF_BASE for override in overrides):
        raise UserError("--set belongs to a run file; a run directory keeps the configuration it was trained with")
    if not path.exists():
        raise UserError(f"{path}: there is no such run directory or run file")
    if not run and model not in (None, "base"):
        raise UserError(f"--model {model}: {path} is a run file, which has only its base model; name a run directory")
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    config = _config_of_run(path, overrides, registry) if run else load_run_config(path, overrides, registry=registry)
    if micro_batch is not None:
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"micro_batch": micro_batch})})
    if alone and config.run.shard:
        precision = config.precision.model_copy(update={"attention": "auto"})
        run_section = config.run.model_copy(update={"shard": False, "device": "cpu"})
        config = config.model_copy(update={"run": run_section, "precision": precision})
    from dgpo_core.storage.checkpoint import Checkpoints

    found = Checkpoints(path / "checkpoints").find(checkpoint) if run else None
    if run:
        _check_base_is_there(path, config)
    from dgpo_core.training.engine import build_engine

    engine = build_engine(config, registry, join=not alone)
    if found is None:
        return Target(engine, "base", 0, f"base model of {path}")
    try:
        if engine.runtime.processes.main:
            _report_changes(path, engine, found, accept, on_message)
        engine.load_weights(found)
    except BaseException:
        engine.close()
        raise
    wanted: ModelName = model or "ema"  # type: ignore[assignment]
    if wanted == "base":
        return Target(engine, wanted, 0, f"base model of {path}", path)
    chosen = engine.policy.available(wanted)
    label = f"{chosen} weights of {path} after iteration {found.manifest.iteration}"
    if chosen != wanted:
        first = engine.config.objective.ema.first_move
        label += f" (its EMA does not move before update {first}; this is update {found.manifest.updates})"
    return Target(engine, chosen, found.manifest.iteration, label, path)


def _config_of_run(path: Path, overrides: Sequence[str], registry: Registry) -> RunConfig:
    """A run directory's configuration, its base model where `overrides` say that it is now."""
    from dgpo_core.config.locations import located
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.storage.description import CONFIG, read_config

    config = read_config(path, registry)
    if not overrides:
        return config
    changed = load_run_config(path / CONFIG, overrides, registry=registry).backbone
    place = {"checkpoint": changed.checkpoint, "revision": changed.revision}
    return located(config.model_copy(update={"backbone": config.backbone.model_copy(update=place)}), registry)


def _check_base_is_there(path: Path, config: RunConfig) -> None:
    from dgpo_core.storage.description import recorded_base

    base = recorded_base(path)
    if base is not None and base.directory == config.backbone.checkpoint and not Path(base.directory).is_dir():
        raise UserError(
            f"{path}: its base model was in the directory {base.directory}, which is not there any more; if it was "
            "moved, say where it is: --set backbone.checkpoint=PATH"
        )


def _report_changes(
    path: Path, engine: Engine, found: Checkpoint, accept: Collection[str], on_message: Callable[[str], None]
) -> None:
    """Say what is not as the run left it. Raises UserError for other base weights that are not accepted."""
    from dgpo_core.storage.description import check_base
    from dgpo_core.storage.logs import damages

    note = check_base(path, engine.read_base(), accept="base" in accept)
    if note is not None:
        on_message(f"note: {note}")
    for damage in damages(path, [(found.manifest, found.clock)]):
        if damage.path.name == "metrics.jsonl" and damage.path.exists():
            on_message(f"note: {damage}: the log is damaged, or {found.path} is a checkpoint of another run")
