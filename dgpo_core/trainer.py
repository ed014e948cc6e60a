"""The training loop: roll out, score, weigh, optimise. Reads from top to bottom; parts are swapped, not subclassed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.contracts import TimestepContext
from dgpo_core.engine import Engine
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.evaluation import Finer, evaluate
from dgpo_core.groups import informative, weigh
from dgpo_core.guards import alarms
from dgpo_core.hookspecs import RunInfo
from dgpo_core.metrics import evaluation_values, flat, metrics_record, prompt_scores, timing_record
from dgpo_core.optimise import Optimiser, UpdateResult
from dgpo_core.pictures import write_pictures
from dgpo_core.progress import Progress, Silent
from dgpo_core.prompts import digest, of_iteration
from dgpo_core.run_directory import RunDirectory
from dgpo_core.scoring import missing_beyond
from dgpo_core.stopping import Interrupted, Limit, StopRequest, limit_reached
from dgpo_core.types import ScoredGroups, TrainingBatch
from dgpo_schemas.metrics import MetricsRecord, OutcomeRecord, TimingRecord

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.policy import View
    from dgpo_core.registry import Registry
    from dgpo_core.scoring import ScoredSamples
    from dgpo_schemas.run import RunConfig

__all__ = ["Trainer", "run_path"]


def run_path(config: RunConfig) -> Path:
    """The directory of a run."""
    return Path(config.run.output) / config.run.name


class Trainer:
    """One run, from its configuration to its last checkpoint."""

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
        self.progress: Progress = progress or Silent()
        self.stop = stop or StopRequest()
        self.directory = RunDirectory(run_path(config), keep=config.checkpoints.keep)
        self.engine = Engine(config, registry, directory=self.directory.path)
        self.iteration = 0  # iterations finished
        self.trained_seconds = 0.0  # of those iterations, without evaluations and checkpoints
        self.best: tuple[int, float] | None = None  # (iteration, score) of the best evaluation
        self._saved = self._evaluated = -1  # iterations of the last checkpoint and evaluation
        # The policy's state after those iterations: a stop after a measurement must not save that too, since the
        # resumed iteration measures again.
        self._timesteps: dict[str, Any] = {}
        self.skipped_updates = 0
        self.skipped_in_a_row = 0
        self.reward_seconds: Mapping[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples: dict[str, int] = defaultdict(int)

    # -- the run ------------------------------------------------------------------------------------------------

    def train(self, *, resume: bool = False, max_iterations: int | None = None) -> str:
        """Train to the end or to `max_iterations` more; returns "finished" or "interrupted".

        Raises UserError for what the user can mend and RunStopped when the run gave up with its state saved.
        """
        info = RunInfo(self.directory.path, self.config)
        try:
            self._prepare(resume)
            outcome: Literal["finished", "interrupted", "failed"] = "failed"
            try:
                self.registry.notify("dgpo_run_started", run=info)
                outcome = self._loop(info, max_iterations)
                return outcome
            finally:
                self.directory.conclude(
                    OutcomeRecord(outcome=outcome, iteration=self.iteration, ended_by=self.ended_by)
                )
                self.progress.finished(outcome)
                self.registry.notify("dgpo_run_finished", run=info, outcome=outcome)
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
            evaluations=[] if stop.target is None else self.directory.read("evaluations.jsonl"),
        )

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
                        "A lower learning rate, precision.autocast: no or a smaller objective.beta may help"
                    )
        except Interrupted:
            self._save_if_behind()
            self.progress.note(f"stopped after iteration {self.iteration}; continue with --resume")
            return "interrupted"
        self._save_if_behind()
        return "finished"

    def _iterate(self, info: RunInfo) -> tuple[MetricsRecord, TimingRecord]:
        """One iteration: the four verbs, then what is due at its end."""
        started = time.perf_counter()
        self.seconds.clear()
        self.samples.clear()
        self.stop.check()
        draws = self.engine.draws.at("iteration", self.iteration)
        policy, context = self.engine.timesteps, self._timestep_context()
        if policy.measures:
            with self._timed("measure"):
                policy.measure(self.engine.probe(self.roller, self._rollout_view()), context)
        groups = self._roll_out_and_score()
        with self._timed("weigh"):
            batch = weigh(groups, self.config.advantages, self.engine.weighting)
        with self._timed("optimise"):
            bounds = policy.bounds(context)
            sigmas = policy.draw(self.config.timesteps.count, context, draws.at("timesteps"))
            results = self.optimiser.step(batch, sigmas, draws.at("optimise"))
            averages = self.optimiser.averages()
        self.iteration += 1
        told = {**policy.metrics(), "t_min": bounds[0], "t_max": bounds[1]}
        record = self._record(groups, batch, results, averages, sigmas, told)
        policy.observe(flat(record))
        self._timesteps = deepcopy(policy.state_dict())
        self.directory.append("metrics.jsonl", record.model_dump(mode="json"))
        seconds = time.perf_counter() - started
        self.trained_seconds += seconds
        self.registry.notify(
            "dgpo_iteration_finished", run=info, iteration=self.iteration, metrics=record.model_dump(mode="json")
        )
        self._finish_iteration()
        memory = self.engine.runtime.peak_memory()
        timing = timing_record(self.iteration, seconds, self.seconds, self.samples, self.reward_seconds, memory)
        self.directory.append("timings.jsonl", timing.model_dump(mode="json"))
        self.engine.runtime.track(flat(record) | flat(timing), self.iteration)
        return record, timing

    def _finish_iteration(self) -> None:
        """Evaluate and save what is due after `self.iteration` iterations and not done yet.

        Also called when a run starts: it may have been stopped between an iteration and its evaluation.
        """
        done = self.iteration
        try:
            improved = self._evaluation_due() and self._evaluate()
        except UserError:  # a reward that fails here must not cost the iterations before it
            self._save_if_behind()
            raise
        every = done % self.config.checkpoints.every == 0 or self.ended_by is not None
        if (every and self._saved != done) or (improved and self.config.checkpoints.best):
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
        prompts = of_iteration(
            self.engine.train_prompts, self.iteration, rollout.groups, self.engine.draws.at("prompt order")
        )
        draws = self.engine.draws.at("iteration", self.iteration, "rollout")
        view = self._rollout_view()
        total = rollout.groups * rollout.group_size
        rollouts = []
        scorer = self.engine.scorer
        try:
            with self._timed("roll_out"):
                keep_path = self.engine.objective.needs_path
                for sampled in self.roller.roll_out(prompts, rollout.group_size, draws, view, keep_path=keep_path):
                    self.stop.check()
                    scorer.submit(self.engine.backbone.decode(sampled.x0), sampled.prompts)
                    rollouts.append(sampled)
                    self.progress.phase("roll out", sampled.start + len(sampled.x0), total)
            with self._timed("wait_for_scores"):
                self.progress.phase("score", 0, total)
                scored = scorer.collect()
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
        return "old" if switch is not None and self.optimiser.updates >= switch else "policy"

    def _check_missing(self, known: Tensor, samples: ScoredSamples) -> None:
        """Raise RunStopped, the state saved, if more scores are missing than the run file allows, or all are."""
        limit = self.config.scoring.max_missing
        found = missing_beyond(limit, self.engine.scorer.rewards, known, samples)
        if found is not None:
            share, why = found
            self._save_if_behind()
            raise RunStopped(
                f"{share:.0%} of the scores of iteration {self.iteration + 1} are missing (limit scoring.max_missing = "
                f"{limit:g}); the state is saved. {why}"
            )

    def _timestep_context(self) -> TimestepContext:
        t_min, t_max = self.config.sigma_range
        return TimestepContext(
            sigmas=self.engine.training_sigmas,
            t_min=t_min,
            t_max=t_max,
            shift=self.config.rollout.shift,
            iteration=self.iteration,
            iterations=self.config.run.iterations,
            deterministic=self.engine.sampler.deterministic,
        )

    def _evaluate(self) -> bool:
        """Evaluate the configured view; True if the first reward is better than ever before."""
        section = self.config.evaluation
        with self._timed("evaluate"):
            result = evaluate(
                self.evaluation_roller,
                self.engine.evaluation_scorer,
                self.engine.heldout_prompts,
                members=section.samples_per_prompt,
                draws=self.engine.draws.at("evaluation"),
                view=section.view,
                iteration=self.iteration,
                pictures=section.pictures,
                finer=self.finer,
                interrupt=self.stop.check,
                progress=lambda done, total: self.progress.phase("evaluate", done, total),
            )
        self.samples["evaluate"] = len(result.samples)
        if result.media is not None:
            write_pictures(self.directory.path / "pictures" / f"{self.iteration:06d}", result.media, result.prompts)
        self.directory.write_scores(
            prompt_scores(
                result.samples,
                self.engine.heldout_prompts,
                self.engine.evaluation_scorer.rewards,
                self.iteration,
                section.view,
            )
        )
        self.directory.append("evaluations.jsonl", *(record.model_dump(mode="json") for record in result.records))
        self._evaluated = self.iteration
        self.progress.evaluated(result.records)
        self.engine.runtime.track(evaluation_values(result.records), self.iteration)
        score = result.records[0].value
        improved = self.best is None or score > self.best[1]
        if improved:
            self.best = (self.iteration, score)
        return improved

    def _check_guards(self) -> None:
        """Tell of guards that left their bands while the target rose; raise RunStopped, the state saved, if told to."""
        guards = self.config.evaluation.guards
        if guards.alarm == "off" or "evaluate" not in self.seconds:  # an alarm is raised once, not again by a resume
            return
        lines = (line for line in self.directory.read("evaluations.jsonl") if "role" in line)  # older logs have none
        found = alarms(lines, guards.bands)
        for alarm in found:
            self.progress.note(str(alarm))
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

    def _prepare(self, resume: bool) -> None:
        """Build every part, check what can be checked before the first sample, and restore the saved state.

        A new run's directory is made last: a mistake in the run file leaves nothing behind.
        """
        engine, config = self.engine, self.config
        self.directory.claim(config, resume=resume, make=False)
        checkpoint = self.directory.checkpoints.newest() if resume else None
        self.build()
        self.directory.claim(config, resume=resume, make=True)
        prompts = {
            split: {"count": len(found), "sha256": digest(found)}
            for split, found in (("train", engine.train_prompts), ("heldout", engine.heldout_prompts))
        }
        if checkpoint is not None:
            self.directory.check_prompts(prompts)
            manifest = checkpoint.manifest
            engine.load_weights(checkpoint)
            self.optimiser.load_state(checkpoint.optimiser, manifest.updates)
            engine.timesteps.load_state_dict(manifest.timesteps)
            self.skipped_updates = manifest.counters["skipped_updates"]
            self.skipped_in_a_row = manifest.counters["skipped_in_a_row"]
            self.iteration = self._saved = manifest.iteration
            self.directory.rewind(self.iteration)
            self.trained_seconds = sum(record["seconds"] for record in self.directory.read("timings.jsonl"))
            self._remember_evaluations()
            if self.directory.checkpoints.set_aside_after(self.iteration):
                self.progress.note(f"the newest checkpoint is damaged; continuing from iteration {self.iteration}")
        else:
            self.directory.rewind(-1)
        self._timesteps = deepcopy(engine.timesteps.state_dict())
        self.directory.describe(config, self.registry, prompts)
        engine.runtime.start_trackers()
        self.progress.started(self.directory.path, self.iteration, config.run.iterations, engine.facts())
        for note in engine.notes():
            self.progress.note(note)

    def _remember_evaluations(self) -> None:
        """The log is the memory of evaluations: it is written before a checkpoint could tell of them."""
        for record in self.directory.read("evaluations.jsonl"):
            if record["iteration"] > self._evaluated:  # the first reward of an evaluation decides
                self._evaluated = record["iteration"]
                if self.best is None or record["value"] > self.best[1]:
                    self.best = (record["iteration"], record["value"])

    def build(self) -> None:
        """Every part of the run, checked against each other. Writes nothing."""
        engine, config = self.engine, self.config
        engine.check_timesteps(self._timestep_context())
        _ = engine.objective, engine.weighting, engine.train_prompts, engine.heldout_prompts
        _ = engine.scorer
        if config.prompts.heldout is not None:
            _ = engine.evaluation_scorer
        self.roller = engine.roller()
        self.evaluation_roller = engine.evaluation_roller()
        self.finer = Finer.of(engine)
        self.optimiser = Optimiser(
            config,
            engine.policy,
            engine.objective,
            engine.conditioning,
            autocast=engine.runtime.autocast,
            sampler=engine.sampler,
            interrupt=self.stop.check,
            progress=self._optimise_progress,
        )

    def _save(self) -> None:
        with self._timed("checkpoint"):
            self.directory.checkpoints.save(
                iteration=self.iteration,
                updates=self.optimiser.updates,
                weights=self.engine.policy.state(),
                optimiser=self.optimiser.state(),
                timesteps=self._timesteps,
                best=self.best if self.config.checkpoints.best else None,
                counters={"skipped_updates": self.skipped_updates, "skipped_in_a_row": self.skipped_in_a_row},
            )
        self._saved = self.iteration

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
        total = rollout.groups * rollout.group_size * self.config.timesteps.count
        self.progress.phase("optimise", min(self.samples["optimise"], total), total)
