"""The training loop: rollout, scoring, advantages, optimization. Components are replaced by plugins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, Objective
from dgpo_core.data.sources import of_sources
from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.processes import split_samples
from dgpo_core.draws import SampleDraws
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.flow.candidates import ChosenDraws, extremes
from dgpo_core.flow.groups import by_source, compute_advantages
from dgpo_core.flow.paths import without_means
from dgpo_core.storage.store import RunStore
from dgpo_core.system.spelling import option
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.accumulation import metric_means
from dgpo_core.training.evaluation import NotFiniteError
from dgpo_core.training.memory import decoded_media
from dgpo_core.training.metrics import flat, metrics_record, prompt_scores, timing_record
from dgpo_core.training.monitors import alarms
from dgpo_core.training.optimizer import UpdateResult
from dgpo_core.training.reward_keeping import costs_of, total_costs
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.saving import Saver
from dgpo_core.training.scored import (
    NO_REASON,
    ScoredSamples,
    merged,
    missing_beyond,
    missing_share,
    not_finite,
    reasons_of,
)
from dgpo_core.training.state import RunState
from dgpo_core.training.times import draw_times
from dgpo_core.types import Candidates, Prompt, Rollout, ScoredGroups, TrainingBatch
from dgpo_schemas.metrics import MetricsRecord
from dgpo_schemas.sections.prompts import SourceBlock

__all__ = ["Loop"]


class Loop:
    """Runs the iterations of a run from its current state, with evaluations and checkpoints.

    Each rank runs its own loop; all ranks reach the same decisions.
    """

    def __init__(self, run: TrainingRun, state: RunState, store: RunStore) -> None:
        self.run = run
        self.state = state
        self.saver = Saver(run, state, store)
        self.config = run.config
        self.processes = run.runtime.processes
        self.phases = run.phases

    def train(self, max_iterations: int | None = None) -> Literal["finished", "interrupted"]:
        """Train to the end of the run, or for `max_iterations` iterations.

        Raises RunStopped if the run cannot continue; the state after the last complete iteration is saved.
        """
        state, last = self.state, self.config.run.iterations
        end = last if max_iterations is None else min(last, state.iteration + max_iterations)
        try:
            with self.saver.kept_on_failure():
                self._evaluate_and_save()  # the run may have been stopped between an iteration and its evaluation
                self._check_monitors()
                while state.iteration < end and state.ended_by is None:
                    self._iterate()
                    self._check_monitors()
                    self._check_skipped()
        except Interrupted:
            self.saver.save_if_behind()
            self.run.callbacks.on_message(
                f"stopped after iteration {state.iteration}; continue with {option('resume', True)}"
            )
            return "interrupted"
        self.saver.save_if_behind()
        return "finished"

    def _iterate(self) -> None:
        """Run one iteration: the four phases, then the evaluation and checkpoint that are due."""
        started = time.perf_counter()
        self.phases.clear()
        self.run.callbacks.on_iteration_start(self.state.iteration)
        with self.processes.together():
            self.run.stop.check()
        self._measure()
        groups = self.sample_groups_and_score()
        self.state.drawn = self.state.iteration
        self.saver.prune()
        with self.phases.timed("compute_advantages"):
            groups = self._agreed(groups)
            batch = compute_advantages(groups, self.config.advantages, self.run.weighting, self.run.objective)
        self.run.callbacks.on_advantages(self.state.iteration + 1, groups, batch)
        record = self._optimize(groups, batch)
        seconds = time.perf_counter() - started
        self.run.callbacks.on_metrics(record)  # before the next collective, so that it is logged even if a rank is lost
        self.state.trained_seconds += (seconds := self.processes.broadcast_object(seconds))
        self._evaluate_and_save()
        used = self.processes.all_gather_object((self.run.runtime.peak_memory(), costs_of(self.run.rewards)))
        memory, self.phases.costs = max(peak for peak, _ in used), total_costs([costs for _, costs in used])
        timing = timing_record(self.state.iteration, seconds, self.phases, memory)
        if (report := self.run.compile_report) is not None:
            report.send(self.run.callbacks.on_message, self.run.callbacks.on_warning)
            timing = timing.model_copy(update={"compile": report.counts()})
        self.run.callbacks.on_iteration_end(record, timing)

    def _agreed(self, groups: ScoredGroups) -> ScoredGroups:
        """Return the groups with the first rank's distances, for a weighting or objective that may look at them.

        Their last bits may differ between ranks.
        """
        weighs = type(self.run.weighting).group_weights is not AdvantageWeighting.group_weights
        looks = weighs or type(self.run.objective).kl_scales is not Objective.kl_scales
        if self.processes.count == 1 or not looks:
            return groups
        return replace(groups, distances=self.processes.broadcast_object(groups.distances))

    # -- the phases ---------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Let the timestep policy measure the model, if it does so."""
        run, policy = self.run, self.run.timesteps
        if not policy.measures:
            return
        with self.phases.timed("measure"):
            model = run.rollout_model(run.optimizer.updates)
            policy.measure(run.probe(run.training_rollout_sampler, model), run.timestep_context(self.state.iteration))
            if self.processes.count > 1:  # the last bits of measurements may differ between ranks
                policy.load_state_dict(self.processes.broadcast_object(policy.state_dict()))

    def sample_groups_and_score(self) -> ScoredGroups:
        """Sample and score the groups of this iteration, after the candidates that they are chosen from, if there are
        any."""
        run, rollout = self.run, self.config.rollout
        order = run.draws.at("prompt order")
        draws = run.draws.at("iteration", self.state.iteration, "rollout")
        try:
            prompts = run.sized(of_sources(run.sources, self.state.iteration, rollout.groups, order))
            if rollout.explore is None:
                return self._groups(run.training_rollout_sampler, prompts, rollout.group_size, draws)
            assert run.exploration_sampler is not None
            found = self._groups(run.exploration_sampler, prompts, rollout.explore.candidates, draws, trained=False)
            chosen = extremes(found.rewards, found.scored, rollout.best, rollout.group_size - rollout.best)
            again = ChosenDraws(draws, chosen.tolist())
            groups = self._groups(run.training_rollout_sampler, prompts, rollout.group_size, again)
            return replace(groups, candidates=Candidates(found.rewards, found.summed, found.scored, chosen))
        except UserError:  # such as a changed condition file; do not lose the iterations before it
            self.saver.save_completed_iteration()
            raise

    def _groups(
        self,
        sampler: RolloutSampler,
        prompts: Sequence[Prompt],
        members: int,
        draws: SampleDraws,
        *,
        trained: bool = True,
    ) -> ScoredGroups:
        """Sample and score groups of `members` samples; each micro-batch is scored while the next one is sampled.

        trained: they are trained on; otherwise the result has no latents.
        """
        run, count = self.run, self.config.rollout.groups
        samples = split_samples(count, members, self.config.optimizer.updates, self.processes.count)
        try:
            run.scorer.expect(Layout(members, draws, samples, self.processes.rank))
            rollouts = self._sample(sampler, prompts, members, draws, samples[self.processes.rank], trained=trained)
            scored = self._score(samples)
        except BaseException:
            run.scorer.discard()
            raise
        for phase in ("rollout", "score"):
            self.phases.samples[phase] += count * members
        groups = run.scorer.groups(
            scored, rollouts, prompts, self.config.scoring, self.config.advantages.epsilon, self._sources
        )
        iteration = f"iteration {self.state.iteration + 1}"
        self._check_missing(groups, scored, iteration if trained else f"the candidates of {iteration}")
        return groups

    def _sample(
        self, sampler: RolloutSampler, prompts: Sequence[Prompt], members: int, draws: SampleDraws,
        local: Sequence[int], *, trained: bool,
    ) -> list[Rollout]:  # fmt: skip
        """Draw this rank's samples and submit each micro-batch to the rewards; return those that are trained on."""
        run, rollouts, done = self.run, [], 0
        with self.phases.timed("rollout"), self.processes.together(run.policy.finish):
            for sampled in sampler.sample_groups(
                prompts, members, draws, run.rollout_model(run.optimizer.updates),
                samples=local, keep_path=trained and run.objective.needs_path,
            ):  # fmt: skip
                run.stop.check()
                media = decoded_media(run.backbone, sampled, training=True)
                run.scorer.submit(media, sampled.prompts, run.stop.check, sampled.samples)
                del media  # only the scorer keeps a reference, until the media are scored
                if trained:
                    rollouts.append(sampled if run.objective.needs_means else without_means(sampled))
                done += len(sampled.samples)
                run.callbacks.on_progress("rollout", done, len(local))
        waited = run.scorer.waited  # for room in the queues of slow rewards
        self.phases.seconds["rollout"] -= waited
        self.phases.seconds["wait_for_scores"] += waited
        return rollouts

    def _score(self, samples: Sequence[Sequence[int]]) -> ScoredSamples:
        """Wait for the scores of all ranks' samples."""
        scorer, stop, local = self.run.scorer, self.run.stop, samples[self.processes.rank]
        with self.phases.timed("wait_for_scores"):
            self.run.callbacks.on_progress("score", 0, len(local))
            scorer.complete(self.processes, stop.check)
            with self.processes.together():
                local_scores = scorer.collect(stop.check) if local else None
            scored = merged(local_scores, self.processes, samples)
        self.phases.seconds["score"] += sum(scored.seconds.values())
        for label, seconds in scored.seconds.items():
            self.phases.rewards[label] += seconds
        return scored

    def _optimize(self, groups: ScoredGroups, batch: TrainingBatch) -> MetricsRecord:
        """Run the updates of this iteration, count it as finished, and return its record."""
        run, state, policy = self.run, self.state, self.run.timesteps
        with self.phases.timed("optimize"):
            bounds = policy.bounds(run.timestep_context(state.iteration))
            results, sigmas, weights = self._passes(batch)
            self.saver.check_weights()
            averages = metric_means([result.gradient for result in results], self.processes)
        state.iteration += 1
        if self.config.objective.reference == "reset":
            averages |= {"reset": float(self._reset_reference(averages.get("kl")))}
        state.updates = run.optimizer.updates
        state.count_skipped(results)
        record = metrics_record(
            state,
            groups,
            batch,
            results,
            averages,
            change_norm=run.policy.change_norm(),
            sigma_range=(float(sigmas.min()), float(sigmas.max())),
            timesteps={**policy.metrics(), **_extremes(weights), "t_min": bounds[0], "t_max": bounds[1]},
        )
        policy.observe(flat(record))
        state.timesteps = deepcopy(policy.state_dict())
        return record

    def _passes(self, batch: TrainingBatch) -> tuple[list[UpdateResult], Tensor, Sequence[Tensor]]:
        """Run all passes over the groups; return the results of their updates, and the times of all passes with their
        weights, if they have any."""
        run, count = self.run, self.config.timesteps.count
        draws, context = run.draws.at("iteration", self.state.iteration), run.timestep_context(self.state.iteration)
        results: list[UpdateResult] = []
        times, weights = [], []
        for number in range(self.config.optimizer.passes):
            key = draws if number == 0 else draws.at("pass", number)
            sigmas, of_times = draw_times(run.timesteps, count, context, key.at("timesteps"))
            # "optimise" seeds the draws, so its spelling must not change.
            results += run.optimizer.step(
                batch, sigmas, key.at("optimise"), time_weights=of_times, interruptible=number == 0
            )
            times.append(sigmas)
            weights += [] if of_times is None else [of_times]
        run.policy.end_iteration()
        return results, torch.cat(times), weights

    def _reset_reference(self, kl: float | None) -> bool:
        """Reset the reference if that is due after the finished iterations, of which the last one has this KL term."""
        section = self.config.objective.reset
        far = section.kl is not None and kl is not None and kl > section.kl
        if due := self.state.iteration % section.every == 0 or far:
            self.run.policy.reset_reference()
        return due

    # -- between iterations -------------------------------------------------------------------------------------

    def _evaluate_and_save(self) -> None:
        """Run the evaluation and save the checkpoint that are due after the finished iterations."""
        state, due = self.state, self.state.evaluation_due
        try:
            improved = due and self._evaluate()
        except NotFiniteError as error:
            if self.run.optimizer.updates == 0:
                raise
            media = f"the media of the evaluation of iteration {state.iteration}"
            raise RunStopped(self.saver.standing().media(media)) from error
        except UserError:  # such as a failing reward; do not lose the iterations before it
            self.saver.save_completed_iteration()
            raise
        saved = state.saved == state.iteration
        behind = saved and due  # the checkpoint was saved before this evaluation, so it does not cover its log lines
        if (state.checkpoint_due and not saved) or (improved and self.config.checkpoints.best) or behind:
            self.saver.save()

    def _evaluate(self) -> bool:
        """Evaluate the configured model; return True if the first reward has its best value so far."""
        run, state, evaluator = self.run, self.state, self.run.evaluator
        assert evaluator is not None
        model = run.policy.available(self.config.evaluation.model)
        with self.phases.timed("evaluate"):
            result = evaluator.evaluate(
                model,
                state.iteration,
                interrupt=run.stop.check,
                progress=lambda done, total: run.callbacks.on_progress("evaluate", done, total),
            )
        self.phases.samples["evaluate"] = len(result.samples)
        scores = prompt_scores(result.samples, evaluator.prompts, evaluator.scorer.rewards, state.iteration, model)
        run.callbacks.on_evaluation(result, scores)
        improved = state.add_evaluation([record.model_dump(mode="json") for record in result.records])
        if model == run.rollout_model(run.optimizer.updates) or state.ended_by is not None:
            state.drawn = state.iteration
        return improved

    @property
    def _sources(self) -> list[SourceBlock]:
        """The sources of the training prompts; empty if there is a single list."""
        return self.config.prompts.sources("train")

    def _check_missing(self, groups: ScoredGroups, samples: ScoredSamples, where: str) -> None:
        """Save the state and raise RunStopped if more scores are missing than scoring.max_missing allows, or all
        are; then the same for each prompt source, with its own limit. where: what was scored, for messages."""
        limit, rewards = self.config.scoring.max_missing, self.run.scorer.rewards
        found = missing_beyond(limit, rewards, groups.scored, samples)
        broken = found is not None and not_finite(rewards, samples)
        if found is None or (self._sources and found[0] < 1 and not broken):
            self._check_sources(groups, samples, where)
            return
        share, reasons = found
        if broken:
            if share < 1 and self.run.optimizer.updates:  # weights that yield only non-finite media are not saved
                self.saver.save_if_behind()
            media = f"{share:.0%} of the media of {where}"
            raise RunStopped(self.saver.standing().media(media))
        self.saver.save_if_behind()
        raise RunStopped(
            f"{share:.0%} of the scores of {where} are missing (limit scoring.max_missing = {limit:g}); the state is "
            f"saved. {reasons}"
        )

    def _check_sources(self, groups: ScoredGroups, samples: ScoredSamples, where: str) -> None:
        """Save the state and raise RunStopped if more scores of a prompt source are missing than it allows."""
        rows = by_source(groups.prompts)
        for i, source in enumerate(self._sources):
            own = source.max_missing is not None
            limit = source.max_missing if source.max_missing is not None else self.config.scoring.max_missing
            of_source = rows.get(source.source, [])
            share = missing_share(groups.scored[of_source])
            if share <= limit:
                continue
            members = groups.scored.shape[1]
            flat = [row * members + member for row in of_source for member in range(members)]
            reasons = reasons_of([reward for reward in self.run.scorer.rewards if reward.counts], samples, flat)
            self.saver.save_if_behind()
            raise RunStopped(
                f"{share:.0%} of the scores of the source {source.source} in {where} are missing (limit "
                f"{f'prompts.train.{i}.max_missing' if own else 'scoring.max_missing'} = {limit:g}); the state is "
                f"saved. {reasons or NO_REASON}"
            )

    def _check_monitors(self) -> None:
        """Warn if a monitor left its tolerance while the target rose.

        With evaluation.monitors.alarm: stop, save the state and raise RunStopped.
        """
        monitors = self.config.evaluation.monitors
        if monitors.alarm == "off" or "evaluate" not in self.phases.seconds:  # a resume does not repeat the alarm
            return
        lines = self.state.evaluations_after(self.state.monitors_changed)
        found = alarms((line for line in lines if "role" in line), monitors.tolerances)  # older logs have no roles
        for alarm in found:
            self.run.callbacks.on_warning(str(alarm))
        if found and monitors.alarm == "stop":
            self.saver.save_if_behind()
            raise RunStopped(
                f"{found[0]} (evaluation.monitors.alarm: stop; the state is saved, and {option('resume', True)} "
                "continues to the next evaluation)"
            )

    def _check_skipped(self) -> None:
        """Save the state and raise RunStopped if more updates in a row were skipped than optimizer.max_skipped."""
        skipped, limit = self.state.skipped_in_a_row, self.config.optimizer.max_skipped
        if skipped <= limit:
            return
        self.saver.save_if_behind()
        raise RunStopped(
            f"{skipped} updates in a row had non-finite losses or gradients and were skipped (limit "
            f"optimizer.max_skipped = {limit}); the state is saved. Resume with a lower optimizer.learning_rate or "
            f"precision.autocast: no, or start a new run with a smaller objective.beta"
            f"{self.saver.standing().after_skipping()}"
        )


def _extremes(weights: Sequence[Tensor]) -> dict[str, float]:
    """Return the smallest and largest weight of a time, to log; nothing without weights."""
    if not weights:
        return {}
    every = torch.cat(list(weights))
    return {"weight_min": float(every.min()), "weight_max": float(every.max())}
