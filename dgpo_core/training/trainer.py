"""A training run from its configuration to its last checkpoint: prepared, gone through, concluded."""

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
from dgpo_core.training.observers import Logs, PluginObservers, Trackers
from dgpo_core.training.run import Run, build_run
from dgpo_core.training.state import RunState
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
"""What a resume may take as it is."""
Resume = bool | Literal["auto"]
"""Whether to go on with a run; `auto`: if it has a checkpoint, else to begin it, over if need be."""


class Trainer:
    """One run, from its configuration to its last checkpoint.

    With several processes each of them has a trainer, and all of these decide alike; only the main one reads and
    writes the run's directory and has callbacks.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        *,
        callbacks: Sequence[Callback] = (),
        stop: StopRequest | None = None,
    ) -> None:
        """callbacks: called after those that write the run's directory. stop: asked between micro-batches."""
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
            self.callbacks = Callbacks([Logs(directory, self.state), Trackers(self.runtime), *callbacks, observers])
        self.closing = ExitStack()
        self.closing.callback(self.store.release)
        self.closing.callback(self.runtime.close)
        self._run: Run | None = None

    def train(
        self, *, resume: Resume = False, max_iterations: int | None = None, accept: Collection[Accepted] = ()
    ) -> Literal["finished", "interrupted"]:
        """Train to the end or to `max_iterations` more.

        accept: what a resume takes as it is, though it is not what the run began with ("base") or logged ("logs").

        Raises UserError for what the user can mend and RunStopped when the run gave up with its state saved.
        """
        state = self.state
        with self.closing:
            messages, warnings = self._prepare(resume, accept)
            outcome: Literal["finished", "interrupted", "failed"] = "failed"
            try:
                run = self.build()
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
                except Exception:  # what went wrong first is what has to be known
                    log.warning("a callback failed when the run had ended", exc_info=True)
                raise
            self._report_end(outcome)
            return outcome

    def _report_end(self, outcome: Literal["finished", "interrupted", "failed"]) -> None:
        state = self.state
        self.callbacks.on_end(OutcomeRecord(outcome=outcome, iteration=state.iteration, ended_by=state.ended_by))

    def build(self) -> Run:
        """All parts of the run; later calls return the same. Writes nothing; raises UserError for what does not fit."""
        if self._run is None:
            phases = Phases(self.callbacks, self.runtime.synchronize)
            self._run = build_run(self.config, self.registry, self.runtime, phases, self.stop)
            self.closing.callback(self._run.close)
        return self._run

    def close(self) -> None:
        """End what was built, without training."""
        self.closing.close()

    # -- start and resume ---------------------------------------------------------------------------------------

    def _prepare(self, how: Resume, accept: Collection[Accepted]) -> tuple[list[str], list[str]]:
        """Build every part, check what can be checked before the first sample, and restore the saved state; messages
        and warnings for people.

        A new run's directory is made last: a mistake in the run file leaves nothing behind.
        """
        config, store, state, over = self.config, self.store, self.state, how == "auto"
        resume, checkpoint = store.open(config, self.registry, resume=None if how == "auto" else how)
        resume = self.processes.broadcast_object(resume)  # the main process alone sees the directory
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
        changed = store.describe(config, self.registry, prompts, base, times, resumed=resumed)
        state.had_ended = state.ended_by is not None
        messages = [one for one in (changed, self._note_on_averages()) if one is not None]
        return messages, [*notes, *(f"warning: {note}" for note in run.notes())]

    def _note_on_averages(self) -> str | None:
        """That evaluations will be of the policy, if they come before the EMA has moved."""
        section, first = self.config.evaluation, self.config.objective.ema.first_move
        every = min(section.every or self.config.run.iterations, self.config.run.iterations)
        evaluated = (self.state.iteration // every + 1) * every * self.config.optimizer.updates  # updates by then
        if section.model != "ema" or self.config.prompts.heldout is None or evaluated >= first:
            return None
        return f"evaluations before update {first} are of the policy: the EMA has not moved"

    def _agree(self, prompts: Mapping[str, Any], base: BaseRecord | None) -> None:
        """Raise UserError unless all processes were given the same run, the same prompts and the same base model,
        wherever each of them has its files."""
        mine = {
            "run file": without_places(self.config, self.registry),
            "prompts": dict(prompts),
            "base model": None if base is None else base.model_dump(mode="json", include={"files"}),
        }
        for rank, theirs in enumerate(self.processes.all_gather_object(mine)):
            for what, value in mine.items():
                if theirs[what] != value:
                    raise UserError(
                        f"process {rank} has another {what} than process {self.processes.rank}: give every machine the "
                        "same files"
                    )

    def _restore(self, checkpoint: Checkpoint | None, accept: Collection[Accepted]) -> None:
        """Put the main process's checkpoint in place; the others have None, and need not see its file system."""
        run = self.build()
        said: dict[str, Any] = {}
        if checkpoint is not None:
            run.check_weights(checkpoint.path, checkpoint.weights)
            memory, notes = self.store.recall(checkpoint, accept_damage="logs" in accept)
            for note in notes:
                self.callbacks.on_message(note)
            said = {"manifest": checkpoint.manifest.model_dump(mode="json"), "memory": memory}
        said = self.processes.broadcast_object(said)
        manifest = CheckpointManifest.model_validate(said["manifest"])
        weights = self.processes.broadcast_tensors(None if checkpoint is None else checkpoint.weights)
        run.policy.load_state(weights, manifest.updates)
        moments = self.processes.broadcast_tensors(None if checkpoint is None else checkpoint.optimizer)
        run.optimizer.load_state(moments, manifest.updates)
        run.timesteps.load_state_dict(manifest.timesteps)
        self.state.restore(manifest, said["memory"])
        self.store.set_clock(self.state.iteration, self.state.trained_seconds)
