"""The training loop: roll out, score, weigh, optimise. Reads from top to bottom; parts are swapped, not subclassed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from dgpo_core.config.changes import last_measured_otherwise
from dgpo_core.config.locations import without_places
from dgpo_core.contracts import TimestepContext
from dgpo_core.data.prompts import longer_than_read
from dgpo_core.data.sources import of_sources
from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.processes import shares
from dgpo_core.errors import DgpoError, PluginError, ProcessLostError, RunStopped, UserError
from dgpo_core.flow.groups import informative, weigh
from dgpo_core.hookspecs import RunInfo
from dgpo_core.media.pictures import write_pictures
from dgpo_core.storage.description import summary
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.system.stopping import Interrupted, Limit, StopRequest, limit_reached
from dgpo_core.training.engine import Engine
from dgpo_core.training.evaluation import Evaluator, Finer, NotFiniteError
from dgpo_core.training.guards import alarms
from dgpo_core.training.memory import TooLittleMemoryError, decoded_media
from dgpo_core.training.metrics import evaluation_values, flat, metrics_record, prompt_scores, timing_record
from dgpo_core.training.optimise import Optimiser, UpdateResult
from dgpo_core.training.progress import Progress, Silent
from dgpo_core.training.scored import merged, missing_beyond, not_finite
from dgpo_core.training.spoilt import Standing
from dgpo_core.types import ScoredGroups, TrainingBatch
from dgpo_schemas.manifest import CheckpointManifest
from dgpo_schemas.metrics import MetricsRecord, OutcomeRecord, TimingRecord

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.checkpoint import Checkpoint
    from dgpo_core.training.policy import View
    from dgpo_core.training.scored import ScoredSamples
    from dgpo_core.types import Prompt
    from dgpo_schemas.origin import BaseRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["Accepted", "Resume", "Trainer", "run_path"]

Accepted = Literal["base", "logs"]
"""What a resume may take as it is."""
Resume = bool | Literal["auto"]
"""Whether to go on with a run; `auto`: if it has a checkpoint, else to begin it, over if need be."""


def run_path(config: RunConfig) -> Path:
    """The directory of a run."""
    return Path(config.run.output) / config.run.name


class _Nothing:
    """Takes any call and does nothing: the run directory, and what is in it, of the processes that do not write."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        return None


class Trainer:
    """One run, from its configuration to its last checkpoint.

    With several processes each of them has a trainer, and all of these decide alike; only the main one reads and
    writes the run's directory, shows progress and calls the plugins' hooks.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        *,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config = config
        self.registry = registry
        self.stop = stop or StopRequest()
        self.engine = Engine(config, registry, directory=run_path(config))
        self.processes = self.engine.runtime.processes
        self.progress: Progress = progress if progress is not None and self.processes.main else Silent()
        self.directory = RunDirectory(run_path(config), keep=config.checkpoints.keep)
        if not self.processes.main:
            self.directory = cast(RunDirectory, _Nothing())
        self.iteration = 0  # iterations finished
        self.trained_seconds = 0.0  # of those iterations, without evaluations and checkpoints
        self.best: tuple[int, float] | None = None  # (iteration, score) of the best evaluation
        self.had_ended = False  # when it was started, so that nothing was left to train
        self._saved = self._evaluated = -1  # iterations of the last checkpoint and evaluation
        self._drawn = -1  # the last iteration whose weights have drawn media that can be scored
        self._evaluations: list[dict[str, Any]] = []  # what evaluations.jsonl says
        # Up to these iterations evaluations measured something else than after them, and their guards did.
        self._otherwise = self._guards_otherwise = -1
        self._updates = 0  # after those iterations
        # The policy's state after those iterations: a stop after a measurement must not save that too, since the
        # resumed iteration measures again.
        self._timesteps: dict[str, Any] = {}
        self.skipped_updates = 0
        self.skipped_in_a_row = 0
        self.reward_seconds: Mapping[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples: dict[str, int] = defaultdict(int)

    # -- the run ------------------------------------------------------------------------------------------------

    def train(
        self, *, resume: Resume = False, max_iterations: int | None = None, accept: Collection[Accepted] = ()
    ) -> str:
        """Train to the end or to `max_iterations` more; returns "finished" or "interrupted".

        accept: what a resume takes as it is, though it is not what the run began with ("base") or logged ("logs").

        Raises UserError for what the user can mend and RunStopped when the run gave up with its state saved.
        """
        info = RunInfo(run_path(self.config), self.config)
        try:
            self._prepare(resume, accept)
            outcome: Literal["finished", "interrupted", "failed"] = "failed"
            try:
                self._notify("dgpo_run_started", run=info)
                outcome = self._loop(info, max_iterations)
                self.processes.wait()
                return outcome
            finally:
                self.directory.conclude(
                    OutcomeRecord(outcome=outcome, iteration=self.iteration, ended_by=self.ended_by)
                )
                self.progress.finished(outcome)
                self._notify("dgpo_run_finished", run=info, outcome=outcome)
        finally:
            self.engine.close()
            self.directory.release()

    @property
    def ended_by(self) -> Literal["iterations"] | Limit | None:
        """The end that the run has reached, if any: its last iteration, or a limit of `stop`."""
        if self.iteration >= self.config.run.iterations:
            return "iterations"
        rollout, stop = self.config.rollout, self.config.stop
        return limit_reached(
            stop,
            seconds=self.trained_seconds,
            samples=self.iteration * rollout.groups * rollout.group_size,
            evaluations=self._evaluations_after(self._otherwise),
        )

    def _evaluations_after(self, iteration: int) -> list[dict[str, Any]]:
        """Records of evaluations that may be compared: a resume may have changed what is measured."""
        return [record for record in self._evaluations if record["iteration"] > iteration]

    def _notify(self, hook: str, **keywords: Any) -> None:
        if self.processes.main:
            self.registry.notify(hook, **keywords)

    def _loop(self, info: RunInfo, max_iterations: int | None) -> Literal["finished", "interrupted"]:
        last = self.config.run.iterations
        end = last if max_iterations is None else min(last, self.iteration + max_iterations)
        try:
            self._finish_iteration()
            self._check_guards()
            while self.iteration < end and self.ended_by is None:
                record, timing = self._iterate(info)
                self.progress.iteration(record, timing)
                self._check_guards()
                if self.skipped_in_a_row > self.config.optimiser.max_skipped:
                    self._save_if_behind()
                    raise RunStopped(
                        f"{self.skipped_in_a_row} updates in a row had non-finite losses or gradients and were skipped "
                        f"(limit optimiser.max_skipped = {self.config.optimiser.max_skipped}); the state is saved. "
                        "A resume with a lower optimiser.learning_rate or precision.autocast: no may help, or a new "
                        f"run with a smaller objective.beta{self._standing().after_skipping()}"
                    )
        except Interrupted:
            self._save_if_behind()
            self.progress.note(f"stopped after iteration {self.iteration}; continue with --resume")
            return "interrupted"
        except TooLittleMemoryError as error:
            raise TooLittleMemoryError(f"{error}; {self._save_what_is_whole()}") from error
        except ProcessLostError as error:
            raise ProcessLostError(f"{error}; {self._save_what_is_whole()}; continue with --resume") from error
        except PluginError as error:
            raise PluginError(f"{error}; {self._save_what_is_whole()}") from error
        except (DgpoError, KeyboardInterrupt):
            raise
        except BaseException as error:  # of a plugin, which may even have called `sys.exit`
            blamed = self.registry.blame(error)
            if blamed is None:
                raise
            raise RunStopped(f"{blamed}; {self._save_what_is_whole()}; continue with --resume") from error
        self._save_if_behind()
        return "finished"

    def _save_what_is_whole(self) -> str:
        """Save the state after the last iteration if no update of the next one has changed the weights since, and if
        this process alone has them, for the others may be elsewhere."""
        whole = self.optimiser.updates == self._updates and not self.engine.policy.spread
        if self._saved != self.iteration and whole:
            self._save(alone=True)
        return f"the state after iteration {self._saved} is saved" if self._saved >= 0 else "nothing is saved yet"

    def _iterate(self, info: RunInfo) -> tuple[MetricsRecord, TimingRecord]:
        """One iteration: the four verbs, then what is due at its end."""
        started = time.perf_counter()
        self.seconds.clear()
        self.samples.clear()
        with self.processes.together():
            self.stop.check()
        draws = self.engine.draws.at("iteration", self.iteration)
        policy, context = self.engine.timesteps, self.timestep_context()
        if policy.measures:
            with self._timed("measure"):
                policy.measure(self.engine.probe(self.roller, self._rollout_view()), context)
                if self.processes.count > 1:  # the last bits of a measurement must not part the processes
                    policy.load_state_dict(self.processes.told(policy.state_dict()))
        try:
            groups = self._roll_out_and_score()
        except UserError:  # a condition medium that has changed must not cost the iterations before it
            self._save_what_is_whole()
            raise
        self._drawn = self.iteration
        self.directory.checkpoints.prune(self._best_kept, self._spare)
        with self._timed("weigh"):
            batch = weigh(groups, self.config.advantages, self.engine.weighting)
        with self._timed("optimise"):
            bounds = policy.bounds(context)
            sigmas = policy.draw(self.config.timesteps.count, context, draws.at("timesteps"))
            results = self.optimiser.step(batch, sigmas, draws.at("optimise"))
            self._check_weights()
            averages = self.optimiser.averages()
        self.iteration += 1
        self._updates = self.optimiser.updates
        told = {**policy.metrics(), "t_min": bounds[0], "t_max": bounds[1]}
        record = self._record(groups, batch, results, averages, sigmas, told)
        policy.observe(flat(record))
        self._timesteps = deepcopy(policy.state_dict())
        self.directory.append("metrics.jsonl", record.model_dump(mode="json"))
        seconds = self.processes.told(time.perf_counter() - started)
        self.trained_seconds += seconds
        self._notify(
            "dgpo_iteration_finished", run=info, iteration=self.iteration, metrics=record.model_dump(mode="json")
        )
        self._finish_iteration()
        memory = max(self.processes.everyone(self.engine.runtime.peak_memory()))
        timing = timing_record(self.iteration, seconds, self.seconds, self.samples, self.reward_seconds, memory)
        self.directory.append("timings.jsonl", timing.model_dump(mode="json"))
        if self._saved == self.iteration:
            self._set_clock()
        self.engine.runtime.track(flat(record) | flat(timing), self.iteration)
        return record, timing

    def _finish_iteration(self) -> None:
        """Evaluate and save what is due after `self.iteration` iterations and not done yet.

        Also called when a run starts: it may have been stopped between an iteration and its evaluation.
        """
        done = self.iteration
        due = self._evaluation_due()
        try:
            improved = due and self._evaluate()
        except NotFiniteError as error:
            if self.optimiser.updates == 0:
                raise
            raise RunStopped(self._standing().media(f"the media of the evaluation of iteration {done}")) from error
        except UserError:  # a reward that fails here must not cost the iterations before it
            self._save_what_is_whole()
            raise
        every = done % self.config.checkpoints.every == 0 or self.ended_by is not None
        behind = self._saved == done and due  # saved before the evaluation, which then failed: its log vouches for none
        if (every and self._saved != done) or (improved and self.config.checkpoints.best) or behind:
            self._save()

    def _evaluation_due(self) -> bool:
        section, done = self.config.evaluation, self.iteration
        if self.config.prompts.heldout is None or self._evaluated == done:
            return False
        if done == 0:
            return section.at_start
        return self.ended_by is not None or (section.every > 0 and done % section.every == 0)

    # -- the verbs ----------------------------------------------------------------------------------------------

    def _roll_out_and_score(self) -> ScoredGroups:
        """Draw the groups of this iteration; each micro-batch is scored while the next one is drawn."""
        rollout = self.config.rollout
        order = self.engine.draws.at("prompt order")
        prompts = self.engine.sized(of_sources(self.engine.sources, self.iteration, rollout.groups, order))
        draws = self.engine.draws.at("iteration", self.iteration, "rollout")
        view = self._rollout_view()
        total = rollout.groups * rollout.group_size
        samples = shares(rollout.groups, rollout.group_size, self.config.optimiser.updates, self.processes.count)
        own = samples[self.processes.rank]
        rollouts = []
        scorer = self.engine.scorer
        try:
            scorer.expect(Layout(rollout.group_size, draws, samples, self.processes.rank))
            with self._timed("roll_out"), self.processes.together():
                keep_path = self.engine.objective.needs_path
                for sampled in self.roller.roll_out(
                    prompts, rollout.group_size, draws, view, samples=own, keep_path=keep_path
                ):
                    self.stop.check()
                    media = decoded_media(self.engine.backbone, sampled)
                    scorer.submit(media, sampled.prompts, self.stop.check, sampled.samples)
                    del media  # it lives no longer than it waits for its scores
                    rollouts.append(sampled)
                    self.progress.phase("roll out", sum(len(r.samples) for r in rollouts), len(own))
            waited = scorer.waited  # for rewards that are behind
            self.seconds["roll_out"] -= waited
            self.seconds["wait_for_scores"] += waited
            with self._timed("wait_for_scores"):
                self.progress.phase("score", 0, len(own))
                scorer.complete(self.processes, self.stop.check)
                with self.processes.together():
                    mine = scorer.collect(self.stop.check) if own else None
                scored = merged(mine, self.processes, samples)
        except BaseException:
            scorer.discard()
            raise
        self.seconds["score"] += sum(scored.seconds.values())
        self.reward_seconds = scored.seconds
        self.samples["roll_out"] = self.samples["score"] = total
        groups = scorer.groups(scored, rollouts, prompts, self.config.scoring, self.config.advantages.epsilon)
        self._check_missing(groups.scored, scored)
        return groups

    def _rollout_view(self) -> View:
        """The weights that rollouts are drawn from now."""
        switch = self.config.objective.switch
        return "old" if switch is not None and self.optimiser.updates > switch else "policy"

    def _check_missing(self, known: Tensor, samples: ScoredSamples) -> None:
        """Raise RunStopped, the state saved, if more scores are missing than the run file allows, or all are."""
        limit = self.config.scoring.max_missing
        found = missing_beyond(limit, self.engine.scorer.rewards, known, samples)
        if found is not None:
            share, why = found
            if not_finite(self.engine.scorer.rewards, samples):
                if share < 1 and self.optimiser.updates:  # where nothing else comes of them, they are not saved
                    self._save_if_behind()
                what = f"{share:.0%} of the media of iteration {self.iteration + 1}"
                raise RunStopped(self._standing().media(what))
            self._save_if_behind()
            raise RunStopped(
                f"{share:.0%} of the scores of iteration {self.iteration + 1} are missing (limit scoring.max_missing = "
                f"{limit:g}); the state is saved. {why}"
            )

    def _standing(self) -> Standing:
        """For messages about weights that updates have spoilt."""
        updates = self.optimiser.updates
        return Standing(
            iteration=self.iteration,
            updates=updates,
            saved=self._saved,
            rate=self.optimiser.learning_rate(max(updates - 1, 0)),
            clipped=self.config.optimiser.max_grad_norm is not None,
            last_update=self._last_update_at,
            checkpoints=self.directory.checkpoints.paths() or [],
        )

    def _check_weights(self, *, alone: bool = False) -> None:
        """Raise RunStopped if the last update has left weights, averages or moments that are no numbers to go on with:
        they are not saved, so that what was saved before stays the newest."""
        spoilt = not self.optimiser.sound()
        if not (spoilt if alone else self.processes.any(spoilt)):
            return
        if self.optimiser.updates == 0:
            raise UserError(
                "backbone.checkpoint: its trained weights are not all finite, or too large to compute with; there is "
                "nothing to train from"
            )
        raise RunStopped(self._standing().weights())

    def timestep_context(self) -> TimestepContext:
        """What the timestep policy may look at now."""
        t_min, t_max = self.engine.times.training_range
        return TimestepContext(
            sigmas=self.engine.training_sigmas,
            t_min=t_min,
            t_max=t_max,
            shift=self.engine.times.schedule.shift,
            iteration=self.iteration,
            iterations=self.config.run.iterations,
            deterministic=self.engine.sampler.deterministic,
        )

    def _evaluate(self) -> bool:
        """Evaluate the configured view; True if the first reward is better than ever before."""
        section = self.config.evaluation
        view = self.engine.policy.available(section.view)
        with self._timed("evaluate"):
            result = self.evaluator.evaluate(
                view,
                self.iteration,
                interrupt=self.stop.check,
                progress=lambda done, total: self.progress.phase("evaluate", done, total),
            )
        self.samples["evaluate"] = len(result.samples)
        if result.media:
            self._write_pictures(result.media, result.prompts)
        self.directory.write_scores(
            prompt_scores(
                result.samples,
                self.engine.heldout_prompts,
                self.engine.evaluation_scorer.rewards,
                self.iteration,
                view,
            )
        )
        records = [record.model_dump(mode="json") for record in result.records]
        self.directory.append("evaluations.jsonl", *records)
        self._evaluations += records
        self._evaluated = self.iteration
        if view == self._rollout_view() or self.ended_by is not None:
            self._drawn = self.iteration
        self.progress.evaluated(result.records)
        self.engine.runtime.track(evaluation_values(result.records), self.iteration)
        score = result.records[0].value
        improved = self._improves(self.iteration, score)
        if improved:
            self.best = (self.iteration, score)
        return improved

    def _note_on_averages(self) -> str | None:
        """That evaluations will be of the policy, if they come before the slow EMA has moved."""
        section, first = self.config.evaluation, self.config.objective.ema.slow.first_move
        every = min(section.every or self.config.run.iterations, self.config.run.iterations)
        evaluated = (self.iteration // every + 1) * every * self.config.optimiser.updates  # updates by then
        if section.view != "slow" or self.config.prompts.heldout is None or evaluated >= first:
            return None
        return f"evaluations before update {first} are of the policy: the slow EMA has not moved"

    def _write_pictures(self, media: Sequence[Tensor], prompts: Sequence[Prompt]) -> None:
        if self.processes.main:
            write_pictures(self.directory.path / "pictures" / f"{self.iteration:06d}", media, prompts)

    def _check_guards(self) -> None:
        """Tell of guards that left their bands while the target rose; raise RunStopped, the state saved, if told to."""
        guards = self.config.evaluation.guards
        if guards.alarm == "off" or "evaluate" not in self.seconds:  # an alarm is raised once, not again by a resume
            return
        lines = (
            line for line in self._evaluations_after(self._guards_otherwise) if "role" in line
        )  # older logs have none
        found = alarms(lines, guards.bands)
        for alarm in found:
            self.progress.warn(str(alarm))
        if found and guards.alarm == "stop":
            self._save_if_behind()
            raise RunStopped(
                f"{found[0]} (evaluation.guards.alarm: stop; the state is saved, and --resume goes on to the next "
                "evaluation)"
            )

    def _record(
        self,
        groups: ScoredGroups,
        batch: TrainingBatch,
        results: list[UpdateResult],
        averages: dict[str, float | None],
        sigmas: Tensor,
        timesteps: Mapping[str, float],
    ) -> MetricsRecord:
        self.skipped_updates += sum(r.skipped for r in results)
        for result in results:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        return metrics_record(
            iteration=self.iteration,
            updates=self.optimiser.updates,
            groups=groups,
            batch=batch,
            informative=informative(groups.rewards, groups.scored),
            results=results,
            averages=averages,
            members=self.optimiser.counts(),
            skipped_updates=self.skipped_updates,
            change_norm=self.engine.policy.change_norm(),
            sigma_range=(float(sigmas.min()), float(sigmas.max())),
            timesteps=timesteps,
        )

    # -- start, resume, save ------------------------------------------------------------------------------------

    def _prepare(self, how: Resume, accept: Collection[Accepted]) -> None:
        """Build every part, check what can be checked before the first sample, and restore the saved state.

        A new run's directory is made last: a mistake in the run file leaves nothing behind.
        """
        engine, config = self.engine, self.config
        over = how == "auto"
        # The main process alone sees the directory.
        resume = bool(self.processes.told(self.directory.resumable() or False) if over else how)
        self.directory.claim(config, resume=resume, make=False, registry=self.registry, over=over)
        checkpoint = self.directory.checkpoints.newest() if resume and self.processes.main else None
        self.build()
        self.directory.claim(config, resume=resume, make=True, registry=self.registry, over=over)
        prompts = {
            split: summary(found)
            for split, found in (("train", engine.train_prompts), ("heldout", engine.heldout_prompts))
        }
        base = engine.base
        self._agree(prompts, base)
        notes = []
        if resume:
            notes = self.directory.check_origin(prompts, base, self.registry, accept_base="base" in accept) or []
            self._restore(checkpoint, accept)
        else:
            notes = [note] if over and (note := self.directory.set_aside()) else []
            self.directory.rewind(-1)
        self._timesteps = deepcopy(engine.timesteps.state_dict())
        self._updates = self.optimiser.updates
        changed = self.directory.describe(
            config,
            self.registry,
            prompts,
            base,
            engine.times.record(engine.sampler),
            resumed=self.iteration if resume else None,
        )
        engine.runtime.start_trackers()
        self.progress.started(run_path(config), self.iteration, config.run.iterations, engine.facts())
        self.had_ended = self.ended_by is not None
        if changed is not None:
            self.progress.note(changed)
        if (averages := self._note_on_averages()) is not None:
            self.progress.note(averages)
        for note in notes:
            self.progress.warn(note)
        for note in engine.notes():
            self.progress.warn(f"warning: {note}")

    def _restore(self, checkpoint: Checkpoint | None, accept: Collection[Accepted]) -> None:
        """Put the main process's checkpoint in place; the others have None, and need not see its file system."""
        if checkpoint is not None:
            self.engine.check_weights(checkpoint.path, checkpoint.weights)
            manifest = checkpoint.manifest
            for note in self.directory.rewind_to(checkpoint, accept_damage="logs" in accept):
                self.progress.note(note)
            seconds = (
                checkpoint.clock.trained_seconds
                if checkpoint.clock is not None
                else sum(record["seconds"] for record in self.directory.sound("timings.jsonl"))
            )
            memory = {
                "seconds": seconds,
                "evaluations": self.directory.sound("evaluations.jsonl"),
                "otherwise": last_measured_otherwise(changed := self.directory.changes(manifest.iteration)),
                "guards_otherwise": last_measured_otherwise(changed, guards=True),
            }
            if self.directory.checkpoints.set_aside_after(manifest.iteration):
                self.progress.note(f"the newest checkpoint is damaged; continuing from iteration {manifest.iteration}")
            said: dict[str, Any] = {"manifest": manifest.model_dump(mode="json"), **memory}
        else:
            said = {}
        said = self.processes.told(said)
        manifest = CheckpointManifest.model_validate(said["manifest"])
        weights = self.processes.handed(None if checkpoint is None else checkpoint.weights)
        self.engine.policy.load_state(weights, manifest.updates)
        moments = self.processes.handed(None if checkpoint is None else checkpoint.optimiser)
        self.optimiser.load_state(moments, manifest.updates)
        self.engine.timesteps.load_state_dict(manifest.timesteps)
        self.skipped_updates = manifest.counters.get("skipped_updates", 0)
        self.skipped_in_a_row = manifest.counters.get("skipped_in_a_row", 0)
        self.iteration = self._saved = manifest.iteration
        self.trained_seconds = said["seconds"]
        self._evaluations = said["evaluations"]
        self._otherwise, self._guards_otherwise = said["otherwise"], said["guards_otherwise"]
        if manifest.best_iteration is not None and manifest.best_score is not None:
            self.best = (manifest.best_iteration, manifest.best_score)
        self._remember_evaluations()
        self._set_clock()

    def _agree(self, prompts: Mapping[str, Any], base: BaseRecord | None) -> None:
        """Raise UserError unless all processes were given the same run, the same prompts and the same base model,
        wherever each of them has its files."""
        mine = {
            "run file": without_places(self.config, self.registry),
            "prompts": dict(prompts),
            "base model": None if base is None else base.model_dump(mode="json", include={"files"}),
        }
        for rank, theirs in enumerate(self.processes.everyone(mine)):
            for what, value in mine.items():
                if theirs[what] != value:
                    raise UserError(
                        f"process {rank} has another {what} than process {self.processes.rank}: give every machine the "
                        "same files"
                    )

    def _improves(self, iteration: int, score: float) -> bool:
        """Whether a score is the best so far; one of another measure stands until there is one of this."""
        if self.best is None:
            return True
        now, then = iteration > self._otherwise, self.best[0] > self._otherwise
        return score > self.best[1] if now == then else now

    def _remember_evaluations(self) -> None:
        """The log is the memory of evaluations: it is written before a checkpoint could tell of them."""
        for record in self._evaluations:
            if record["iteration"] > self._evaluated:  # the first reward of an evaluation decides
                self._evaluated = record["iteration"]
                if self._improves(record["iteration"], record["value"]):
                    self.best = (record["iteration"], record["value"])

    def build(self) -> None:
        """Every part of the run, checked against each other. Writes nothing."""
        engine, config = self.engine, self.config
        engine.check_guidance("objective.kl_cfg", config.objective.kl_cfg)
        engine.times.check_range()
        engine.check_timesteps(self.timestep_context())
        _ = engine.objective, engine.weighting, engine.train_prompts, engine.heldout_prompts
        engine.check_prompts([*engine.train_prompts, *engine.heldout_prompts])
        prompts = engine.sized([*engine.train_prompts, *engine.heldout_prompts])
        sizes = {prompt.size or config.rollout.height_width for prompt in engine.train_prompts}
        engine.times.check_sizes(sizes, engine.sampler, engine.objective)
        # Before the rewards, which may refuse a prompt for what it lacks.
        if (longer := longer_than_read(prompts, engine.backbone)) is not None:
            self.progress.warn(f"warning: {longer}")
        _ = engine.scorer
        if config.prompts.heldout is not None:
            _ = engine.evaluation_scorer
        self.roller = engine.roller()
        roller, finer, section = engine.evaluation_roller(), Finer.of(engine), config.evaluation
        for one in (self.roller, roller, *([finer.roller] if finer else [])):
            one.tell = self.progress.note
        if config.prompts.heldout is not None:
            self.evaluator = Evaluator(
                roller=roller, scorer=engine.evaluation_scorer, prompts=engine.heldout_prompts,
                members=section.samples_per_prompt, draws=engine.draws.at("evaluation"), pictures=section.pictures,
                finer=finer, processes=self.processes,
            )  # fmt: skip
        self.optimiser = self.make_optimiser()

    def make_optimiser(self) -> Optimiser:
        """One that has made no update yet, of the policy's weights."""
        engine = self.engine
        return Optimiser(
            self.config,
            engine.policy,
            engine.objective,
            engine.conditioning,
            autocast=engine.runtime.autocast,
            sampler=engine.sampler,
            processes=self.processes,
            tell=self.progress.note,
            interrupt=self.stop.check,
            progress=self._optimise_progress,
        )

    def _save(self, *, alone: bool = False) -> None:
        """Write a checkpoint; by all processes together, for each may have a share of the weights, unless this one is
        `alone` with a failure: then it waits for no other."""
        self._check_weights(alone=alone)
        with self._timed("checkpoint"):
            weights, moments = self.engine.policy.state(), self.optimiser.state()
            self.directory.checkpoints.save(
                iteration=self.iteration,
                updates=self.optimiser.updates,
                weights=weights,
                optimiser=moments,
                timesteps=self._timesteps,
                best=self._best_kept,
                counters={"skipped_updates": self.skipped_updates, "skipped_in_a_row": self.skipped_in_a_row},
                logs=self.directory.log_entries(),
                clock=self.directory.clock(self.trained_seconds),
                spare=self._spare,
            )
        self._saved = self.iteration

    @property
    def _best_kept(self) -> tuple[int, float] | None:
        return self.best if self.config.checkpoints.best else None

    @property
    def _spare(self) -> int | None:
        """The newest checkpoint before this iteration stays: nothing has been drawn with the weights of later ones, or
        all updates from them on were skipped."""
        return self._last_update_at if self.skipped_in_a_row or self._drawn < self.iteration else None

    @property
    def _last_update_at(self) -> int:
        """The iteration of the last update that was not skipped: if it is why all later ones were, the weights from
        before it are what is worth keeping."""
        return self.iteration - self.skipped_in_a_row // self.config.optimiser.updates

    def _set_clock(self) -> None:
        self.directory.checkpoints.set_clock(self.iteration, self.directory.clock(self.trained_seconds))

    def _save_if_behind(self) -> None:
        if self._saved != self.iteration:
            self._save()

    @contextmanager
    def _timed(self, verb: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.engine.runtime.synchronise()
            self.seconds[verb] += time.perf_counter() - started

    def _optimise_progress(self, members: int) -> None:
        rollout = self.config.rollout
        self.samples["optimise"] += members
        total = rollout.groups * rollout.group_size * self.config.timesteps.count // self.processes.count
        self.progress.phase("optimise", min(self.samples["optimise"], total), total)
