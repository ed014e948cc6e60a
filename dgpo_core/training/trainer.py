"""The trainer: a run from its configuration to its last checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.config.locations import run_path, without_places
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import RunInfo
from dgpo_core.storage.description import summary
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.storage.store import RunStore
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.callbacks import Callback, Callbacks, Phases
from dgpo_core.training.loop import Loop
from dgpo_core.training.observers import Logs, PluginObservers
from dgpo_core.training.reward_keeping import keep_in
from dgpo_core.training.run import TrainingRun, build_run
from dgpo_core.training.starting import Start, start_new
from dgpo_core.training.state import RunState
from dgpo_core.training.tracked import Trackers
from dgpo_schemas.manifest import CheckpointManifest
from dgpo_schemas.metrics import OutcomeRecord

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_schemas.origin import BaseRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["Accepted", "Resume", "Trainer", "run_path"]

log = logging.getLogger(__name__)

Accepted = Literal["base", "logs"]
"""What a resume accepts although it has changed."""
Resume = bool | Literal["auto"]
"""Whether to resume a run; `auto`: resume if it has a checkpoint, otherwise start it, from scratch if necessary."""


class Trainer:
    """Runs one training run, from its configuration to its last checkpoint.

    Each rank has a trainer, and all reach the same decisions; only the main process reads and writes the run directory
    and has callbacks.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        *,
        callbacks: Sequence[Callback] = (),
        stop: StopRequest | None = None,
    ) -> None:
        """callbacks: called after those that write the run directory. stop: checked between micro-batches."""
        self.config = config
        self.registry = registry
        self.stop = stop or StopRequest()
        self.state = RunState(config)
        self.runtime = Runtime(config, run_path(config))
        self.processes = self.runtime.processes
        self.store = RunStore()
        self.callbacks = Callbacks([])
        if self.processes.main:
            self.store = directory = RunDirectory(run_path(config), keep=config.checkpoints.keep)
            observers = PluginObservers(registry, RunInfo(run_path(config), config))
            trackers = Trackers(config, registry, directory.path / "images")
            self.callbacks = Callbacks([Logs(directory, self.state), trackers, *callbacks, observers])
        self.closing = ExitStack()
        self.closing.callback(self.store.release)
        self.closing.callback(self.runtime.close)
        self._run: TrainingRun | None = None
        self._resumed = False
        self._start = Start()

    def train(
        self, *, resume: Resume = False, max_iterations: int | None = None, accept: Collection[Accepted] = ()
    ) -> Literal["finished", "interrupted"]:
        """Train to the end of the run, or for `max_iterations` iterations.

        accept: differences that a resume accepts: a changed base model ("base"), damaged logs ("logs").

        Raises UserError for configuration errors, and RunStopped if the run cannot continue; its state is saved then.
        """
        state = self.state
        with self.closing:
            messages, warnings = self._prepare(resume, accept)
            outcome: Literal["finished", "interrupted", "failed"] = "failed"
            try:
                run = self.build()
                keep_in(run.rewards, run_path(self.config))
                self.callbacks.on_start(run_path(self.config), state.iteration, self.config.run.iterations, run.facts())
                for message in messages:
                    self.callbacks.on_message(message)
                for warning in warnings:
                    self.callbacks.on_warning(warning)
                outcome = Loop(run, state, self.store).train(max_iterations)
                self.processes.barrier()
            except BaseException:
                try:
                    self._report_end(outcome)
                except Exception:  # the first error must be reported
                    log.warning("a callback failed when the run had ended", exc_info=True)
                raise
            self._report_end(outcome)
            return outcome

    def _report_end(self, outcome: Literal["finished", "interrupted", "failed"]) -> None:
        state = self.state
        self.callbacks.on_end(OutcomeRecord(outcome=outcome, iteration=state.iteration, ended_by=state.ended_by))

    def build(self) -> TrainingRun:
        """Build all components of the run, once, with its initial weights unless it is resumed. Writes nothing.

        Raises UserError for configuration errors.
        """
        if self._run is None:
            phases = Phases(self.callbacks, self.runtime.synchronize)
            new = not self._resumed
            self._run = build_run(self.config, self.registry, self.runtime, phases, self.stop, new=new)
            self.closing.callback(self._run.close)
            if new:
                self._start = start_new(self._run)
        return self._run

    def close(self) -> None:
        """Close all resources, without training."""
        self.closing.close()

    # -- start and resume ---------------------------------------------------------------------------------------

    def _prepare(self, how: Resume, accept: Collection[Accepted]) -> tuple[list[str], list[str]]:
        """Build the run, check it, create or open its directory, and restore the saved state.

        Returns messages and warnings. A new run's directory is created last, so that a configuration error leaves no
        files behind.
        """
        config, store, state, over = self.config, self.store, self.state, how == "auto"
        resume, checkpoint = store.open(config, self.registry, resume=None if how == "auto" else how)
        resume = self.processes.broadcast_object(resume)  # only the main process reads the directory
        self._resumed = resume
        run = self.build()
        prompts = {"train": summary(run.train_prompts), "heldout": summary(run.heldout_prompts)}
        base = run.read_base()
        self._agree(prompts, base)
        notes = store.enter(
            config, self.registry, prompts, base, resume=resume, over=over, accept_base="base" in accept
        )
        if resume:
            self._restore(checkpoint, accept)
        state.timesteps, state.updates = deepcopy(run.timesteps.state_dict()), run.optimizer.updates
        times = run.times.record(run.sampler)
        resumed = state.iteration if resume else None
        start = self._start.record
        changed = store.describe(config, self.registry, prompts, base, times, start=start, resumed=resumed)
        state.had_ended = state.ended_by is not None
        found = (changed, self._start.message, self._note_on_averages())
        messages = [message for message in found if message is not None]
        return messages, [*notes, *(f"warning: {note}" for note in run.notes())]

    def _note_on_averages(self) -> str | None:
        """Return a note if early evaluations will use the policy, because the EMA has not been updated yet."""
        section, first = self.config.evaluation, self.config.objective.ema.first_move
        every = min(section.every or self.config.run.iterations, self.config.run.iterations)
        updates = self.config.optimizer.updates_per_iteration
        evaluated = (self.state.iteration // every + 1) * every * updates  # updates by then
        if section.model != "ema" or self.config.prompts.heldout is None or evaluated >= first:
            return None
        return f"the EMA is updated for the first time after {first} updates; evaluations before that use the policy"

    def _agree(self, prompts: Mapping[str, Any], base: BaseRecord | None) -> None:
        """Raise UserError unless all ranks have the same run file, prompts and base model; file locations may
        differ."""
        local = {
            "run file": without_places(self.config, self.registry),
            "prompts": dict(prompts),
            "base model": None if base is None else base.model_dump(mode="json", include={"files"}),
            "initial adapter": (self._start.record or {}).get("file"),
        }
        for rank, remote in enumerate(self.processes.all_gather_object(local)):
            for name, value in local.items():
                if remote[name] != value:
                    raise UserError(
                        f"process {rank} has a different {name} than process {self.processes.rank}; give every machine "
                        "the same files"
                    )

    def _restore(self, checkpoint: Checkpoint | None, accept: Collection[Accepted]) -> None:
        """Load the main process's checkpoint on all ranks; other ranks pass None and need no access to its files."""
        run = self.build()
        state: dict[str, Any] = {}
        if checkpoint is not None:
            run.check_weights(checkpoint.path, checkpoint.weights)
            memory, notes = self.store.recall(checkpoint, accept_damage="logs" in accept)
            for note in notes:
                self.callbacks.on_message(note)
            state = {"manifest": checkpoint.manifest.model_dump(mode="json"), "memory": memory}
        state = self.processes.broadcast_object(state)
        manifest = CheckpointManifest.model_validate(state["manifest"])
        weights = self.processes.broadcast_tensors(None if checkpoint is None else checkpoint.weights)
        run.policy.load_state(weights, manifest.updates)
        moments = self.processes.broadcast_tensors(None if checkpoint is None else checkpoint.optimizer)
        run.optimizer.load_state(moments, manifest.updates)
        run.timesteps.load_state_dict(manifest.timesteps)
        self.state.restore(manifest, state["memory"])
        self.store.set_clock(self.state.iteration, self.state.trained_seconds)
