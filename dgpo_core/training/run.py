"""Build all components of a training run and check that they fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, Objective, TimestepContext, TimestepPolicy
from dgpo_core.data.notes import guided, longer_than_read, notes, overlap, unheard
from dgpo_core.data.sources import Source
from dgpo_core.data.wording import reworded_prompts
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import has_distribution, random_times, samplers_such_that, step_at
from dgpo_core.flow.sizes import bucket, different, named
from dgpo_core.media import clips
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.training.evaluation import Evaluator, ManyStepSolve
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.precision import described
from dgpo_core.training.probe import PolicyProbe
from dgpo_core.training.reward_building import evaluation_scorer, training_scorer
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.starting import check_start

if TYPE_CHECKING:
    from dgpo_core.distributed.runtime import Runtime
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.system.stopping import StopRequest
    from dgpo_core.training.callbacks import Callback, Phases
    from dgpo_core.training.policy import ModelName
    from dgpo_core.types import Prompt
    from dgpo_schemas.run import RunConfig

__all__ = ["TrainingRun", "build_run"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRun(Engine):
    """An engine with the components for training; created by `build_run`.

    training_sigmas: sigmas of the rollouts at which the loss may be computed, and the final 0; all_sigmas: all sigmas
    of the rollouts; sources: training prompts; heldout_prompts: evaluation prompts; probe_prompts: prompts that
    timestep policies measure on; scorer: the training rewards; training_rollout_sampler: draws the groups;
    exploration_sampler: draws the candidates that they are chosen from, None without; evaluator: None without held-out
    prompts.
    """

    objective: Objective
    weighting: AdvantageWeighting
    timesteps: TimestepPolicy
    training_sigmas: Tensor
    all_sigmas: Tensor
    sources: list[Source]
    heldout_prompts: list[Prompt]
    probe_prompts: list[Prompt]
    scorer: Scorer
    training_rollout_sampler: RolloutSampler
    exploration_sampler: RolloutSampler | None
    evaluator: Evaluator | None
    optimizer: Optimizer
    phases: Phases
    stop: StopRequest

    @property
    def callbacks(self) -> Callback:
        """The callbacks of the run."""
        return self.phases.callbacks

    @property
    def train_prompts(self) -> list[Prompt]:
        """The training prompts, source by source."""
        return [prompt for source in self.sources for prompt in source.prompts]

    @property
    def rewards(self) -> list[Reward]:
        """All rewards, of training and then of evaluation."""
        return [*self.scorer.rewards, *(self.evaluator.scorer.rewards if self.evaluator is not None else ())]

    def rollout_model(self, updates: int) -> ModelName:
        """Return the model that draws rollouts after `updates` optimizer updates."""
        ema_rollouts_after = self.config.objective.ema_rollouts_after
        return "ema_fast" if ema_rollouts_after is not None and updates > ema_rollouts_after else "policy"

    def timestep_context(self, iteration: int) -> TimestepContext:
        """Return the timestep policy's context in an iteration."""
        return _context(self, self.training_sigmas, self.all_sigmas, iteration)

    def probe(self, rollout_sampler: RolloutSampler, model: ModelName) -> PolicyProbe:
        """Create the probe for timestep policies that measure: a model on training prompts, with a rollout sampler."""
        return PolicyProbe(
            self.policy,
            rollout_sampler,
            lambda refine: self.rollout_sampler(steps=self.config.rollout.steps * refine),
            self.probe_prompts,
            model=model,
            draws=self.draws.at("probe"),
            autocast=self.runtime.autocast,
        )

    def make_optimizer(self) -> Optimizer:
        """Create an optimizer like the run's, without updates."""
        return _optimizer(self, self.objective, self.phases, self.stop)

    def notes(self) -> list[str]:
        """Return notes on settings that are valid but often unintended."""
        found = [] if self.backbone.adapter is None else [*self.backbone.adapter.notes]
        if not (self.sampler.deterministic or self.objective.needs_path):
            found.append(
                f"rollout.sampler: {self.config.rollout.sampler.use} is random, but objective: "
                f"{self.config.objective.use} does not require a random sampler; the paper reports faster learning "
                "with a deterministic one (our own comparison, docs/experiments/e1.md, found no difference)"
            )
        found += self._moving_old()
        every = [*self.train_prompts, *self.heldout_prompts]
        shared = overlap(self.train_prompts, self.heldout_prompts, self.config.evaluation.prompts)
        truncated = unheard(every, self.backbone.supports_guidance and guided(self.config))
        found += [] if shared is None else [shared]
        found += [*notes(self.train_prompts), *notes(self.heldout_prompts)]
        found += [] if truncated is None else [truncated]
        reason = clips.why_not() if self.backbone.media == "video" else None
        if reason is not None and self.heldout_prompts and self.config.evaluation.images:
            found.append(f"evaluation.images: videos are written as film strips only; {reason}")
        return found

    def _moving_old(self) -> list[str]:
        """Return a note if several passes compare with an old policy that follows each of their updates."""
        objective, passes = self.config.objective, self.config.optimizer.passes
        compares = self.objective.needs_old or (self.objective.needs_reference and objective.reference == "ema_fast")
        if passes == 1 or objective.ema_fast.per == "iteration" or not compares:
            return []
        return [
            f"objective.ema_fast.per: update: the old policy that objective: {objective.use} compares with follows "
            f"each update, so in {passes} passes it is not the policy that drew the samples; `per: iteration` keeps it"
        ]

    def facts(self) -> dict[str, Any]:
        """Return facts about the run to show at its start: device, sizes, numbers of parameters and prompts."""
        count = self.runtime.processes.count
        sizes = different([*self.train_prompts, *self.heldout_prompts], self.config.rollout.height_width)
        return {
            "device": ", ".join(
                [str(self.runtime.device)]
                + [f"{count} processes"] * (count > 1)
                + ["deterministic algorithms"] * self.runtime.deterministic
            ),
            "trained parameters": sum(p.numel() for p in self.policy.parameters.values()),
            "all parameters": sum(p.numel() for p in self.backbone.module.parameters()),
            "latent": self.training_rollout_sampler.shape,
            **({"sizes": named(sizes)} if len(sizes) > 1 else {}),
            "shift": self.times.shown,
            "precision": described(self.fast),
            "train prompts": len(self.train_prompts),
            "held-out prompts": len(self.heldout_prompts),
        }


def build_run(
    config: RunConfig, registry: Registry, runtime: Runtime, phases: Phases, stop: StopRequest, *, new: bool = True
) -> TrainingRun:
    """Build all components of a run. Writes nothing. new: not for a checkpoint, which has the weights.

    Raises UserError for configuration errors; then all resources are closed.
    """
    if new and runtime.processes.main:
        check_start(config)
    with ExitStack() as closing:
        engine = build_engine(config, registry, runtime=runtime, new=new, on_message=phases.callbacks.on_message)
        closing.callback(engine.close)
        engine.check_guidance("objective.kl_cfg", config.objective.kl_cfg)
        engine.times.check_range()
        objective = _objective(engine)
        engine.check_sampling(objective)
        every = engine.sampler.sigmas(config.rollout.steps, engine.times.schedule)
        sigmas = random_times(engine.sampler, every) if objective.needs_path else every
        timesteps: TimestepPolicy = engine.create("timesteps", config.timesteps)
        _check_timesteps(engine, objective, timesteps, _context(engine, sigmas, every, 0))
        weighting = engine.create("weighting", config.weighting)
        sources, heldout = engine.load_sources("train"), engine.load_prompts("heldout")
        train = [prompt for source in sources for prompt in source.prompts]
        _check_prompts(engine, objective, phases.callbacks, train, heldout)
        scorer = training_scorer(engine, train)
        evaluator = _evaluator(engine, heldout)
        run = TrainingRun(
            **vars(engine),
            objective=objective,
            weighting=weighting,
            timesteps=timesteps,
            training_sigmas=sigmas,
            all_sigmas=every,
            sources=sources,
            heldout_prompts=heldout,
            probe_prompts=_probe_prompts(engine, train),
            scorer=scorer,
            training_rollout_sampler=engine.rollout_sampler(training=True),
            exploration_sampler=_exploration_sampler(engine),
            evaluator=evaluator,
            optimizer=_optimizer(engine, objective, phases, stop),
            phases=phases,
            stop=stop,
        )
        closing.pop_all()
        return run


def _objective(engine: Engine) -> Objective:
    """Create the objective. Raises UserError if it learns from paths but the sampler has no step distribution."""
    config = engine.config
    objective: Objective = engine.create("objective", config.objective)
    if objective.needs_path and not has_distribution(engine.sampler):
        problem = "is deterministic" if engine.sampler.deterministic else "does not define its step distribution"
        raise UserError(
            f"objective: {config.objective.use} learns from the sampler's random path, but "
            f"rollout.sampler: {config.rollout.sampler.use} {problem}; use a random sampler with a step distribution: "
            f"{samplers_such_that(engine.registry, has_distribution)}"
        )
    objective.check(config)
    return objective


def _context(engine: Engine, sigmas: Tensor, every: Tensor, iteration: int) -> TimestepContext:
    t_min, t_max = engine.times.training_range
    return TimestepContext(
        sigmas=sigmas,
        t_min=t_min,
        t_max=t_max,
        shift=engine.times.schedule.shift,
        iteration=iteration,
        iterations=engine.config.run.iterations,
        deterministic=engine.sampler.deterministic,
        all_sigmas=every,
    )


def _check_timesteps(engine: Engine, objective: Objective, policy: TimestepPolicy, context: TimestepContext) -> None:
    """Raise UserError if the timesteps cannot be drawn, or are not on the path that the objective learns from."""
    section = engine.config.timesteps
    policy.check(context, section.count)
    if not objective.needs_path:
        return
    if not section.shared_noise:
        raise UserError(
            "timesteps.shared_noise: has no effect with objective: "
            f"{engine.config.objective.use}, because a path's states are not noised; remove it"
        )
    for sigma in policy.draw(section.count, context, engine.draws.at("trial of timesteps")).tolist():
        step_at(sigma, context.sigmas.tolist())


def _check_prompts(
    engine: Engine, objective: Objective, callbacks: Callback, train: Sequence[Prompt], heldout: Sequence[Prompt]
) -> None:
    """Raise UserError for prompts that the backbone does not support. Called before rewards check the prompts."""
    engine.check_prompts([*train, *heldout])
    prompts = engine.sized([*train, *heldout])
    sizes = {prompt.size or engine.config.rollout.height_width for prompt in train}
    engine.times.check_sizes(sizes, engine.sampler, objective)
    if (longer := longer_than_read(prompts, engine.backbone)) is not None:
        callbacks.on_warning(f"warning: {longer}")


def _probe_prompts(engine: Engine, train: Sequence[Prompt]) -> list[Prompt]:
    """Shuffle the training prompts, because files are often sorted by task, and keep those of the most common bucket,
    because a probe's samples form one tensor."""
    order = engine.draws.at("probe", "prompts").permutation(len(train)).tolist()
    prompts = engine.sized([train[i] for i in order])
    buckets = [bucket(engine.backbone, prompt) for prompt in prompts]
    most_common = Counter(buckets).most_common(1)[0][0]
    return [prompt for prompt, of_prompt in zip(prompts, buckets, strict=True) if of_prompt == most_common]


def _evaluator(engine: Engine, prompts: Sequence[Prompt]) -> Evaluator | None:
    """Build the evaluator; None without held-out prompts, but the evaluation section is checked in any case."""
    section = engine.config.evaluation
    rollout_sampler, many_step = engine.evaluation_rollout_sampler(), ManyStepSolve.of(engine)
    if engine.config.prompts.heldout is None:
        return None
    return Evaluator(
        scorer=evaluation_scorer(engine, prompts),
        rollout_sampler=rollout_sampler,
        prompts=prompts,
        members=section.samples_per_prompt,
        draws=engine.draws.at("evaluation"),
        images=section.images,
        many_step=many_step,
        reworded=reworded_prompts(section.monitors.wording, prompts, engine.registry),
        processes=engine.runtime.processes,
    )


def _exploration_sampler(engine: Engine) -> RolloutSampler | None:
    explore = engine.config.rollout.explore
    if explore is None:
        return None
    return engine.rollout_sampler(steps=explore.steps, training=True)


def _optimizer(engine: Engine, objective: Objective, phases: Phases, stop: StopRequest) -> Optimizer:
    rollout, processes = engine.config.rollout, engine.runtime.processes
    total = rollout.groups * rollout.group_size * engine.config.timesteps.count // processes.count
    total *= engine.config.optimizer.passes

    def progress(members: int) -> None:
        phases.samples["optimize"] += members
        phases.callbacks.on_progress("optimize", min(phases.samples["optimize"], total), total)

    return Optimizer(
        engine.config,
        engine.policy,
        objective,
        engine.conditioning,
        autocast=engine.runtime.autocast,
        sampler=engine.sampler,
        processes=processes,
        on_message=phases.callbacks.on_message,
        interrupt=stop.check,
        progress=progress,
    )
