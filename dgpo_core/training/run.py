"""Everything that trains, built in one place and in order, and checked against each other."""

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
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import has_distribution, random_times, samplers_such_that, step_at
from dgpo_core.flow.sizes import bucket, different, named
from dgpo_core.media import clips
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.training.evaluation import Evaluator, ManyStepSolve
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.probe import PolicyProbe
from dgpo_core.training.reward_building import evaluation_scorer, training_scorer
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scoring import Scorer

if TYPE_CHECKING:
    from dgpo_core.distributed.runtime import Runtime
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.system.stopping import StopRequest
    from dgpo_core.training.callbacks import Callback, Phases
    from dgpo_core.training.policy import ModelName
    from dgpo_core.types import Prompt
    from dgpo_schemas.run import RunConfig

__all__ = ["Run", "build_run"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(Engine):
    """An engine with what trains; `build_run` makes one.

    training_sigmas: times of the rollouts at which the loss may be taken, and the final 0; sources: prompts to train
    on; heldout_prompts: those for evaluation; probe_prompts: those that timestep policies measure on; scorer: the
    rewards trained on; training_roller: draws the groups; evaluator: None without held-out prompts.
    """

    objective: Objective
    weighting: AdvantageWeighting
    timesteps: TimestepPolicy
    training_sigmas: Tensor
    sources: list[Source]
    heldout_prompts: list[Prompt]
    probe_prompts: list[Prompt]
    scorer: Scorer
    training_rollout_sampler: RolloutSampler
    evaluator: Evaluator | None
    optimizer: Optimizer
    phases: Phases
    stop: StopRequest

    @property
    def callbacks(self) -> Callback:
        """Those that watch it."""
        return self.phases.callbacks

    @property
    def train_prompts(self) -> list[Prompt]:
        """Prompts to train on, source by source."""
        return [prompt for source in self.sources for prompt in source.prompts]

    def rollout_model(self, updates: int) -> ModelName:
        """The weights that rollouts are drawn from after so many updates."""
        ema_rollouts_after = self.config.objective.ema_rollouts_after
        return "ema_fast" if ema_rollouts_after is not None and updates > ema_rollouts_after else "policy"

    def timestep_context(self, iteration: int) -> TimestepContext:
        """What the timestep policy may look at in an iteration."""
        return _context(self, self.training_sigmas, iteration)

    def probe(self, rollout_sampler: RolloutSampler, model: ModelName) -> PolicyProbe:
        """For timestep policies that measure: rollouts as `rollout sampler` and `view` draw them, on training
        prompts."""
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
        """One like the run's that has made no update yet."""
        return _optimizer(self, self.objective, self.phases, self.stop)

    def notes(self) -> list[str]:
        """What may be meant, but often is not."""
        found = []
        if not (self.sampler.deterministic or self.objective.needs_path):
            found.append(
                f"rollout.sampler: {self.config.rollout.sampler.use} is random, but objective: "
                f"{self.config.objective.use} does not need it to be; the paper reports faster learning with a "
                "deterministic one (our own comparison, docs/experiments/e1.md, could not tell them apart)"
            )
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

    def facts(self) -> dict[str, Any]:
        """What a person wants to know before waiting: sizes, device, numbers of prompts."""
        count = self.runtime.processes.count
        sizes = different([*self.train_prompts, *self.heldout_prompts], self.config.rollout.height_width)
        return {
            "device": str(self.runtime.device) + (f", {count} processes" if count > 1 else ""),
            "trained parameters": sum(p.numel() for p in self.policy.parameters.values()),
            "all parameters": sum(p.numel() for p in self.backbone.module.parameters()),
            "latent": self.training_rollout_sampler.shape,
            **({"sizes": named(sizes)} if len(sizes) > 1 else {}),
            "shift": self.times.shown,
            "train prompts": len(self.train_prompts),
            "held-out prompts": len(self.heldout_prompts),
        }


def build_run(config: RunConfig, registry: Registry, runtime: Runtime, phases: Phases, stop: StopRequest) -> Run:
    """All parts of a run. Writes nothing. Raises UserError for what the user can mend; then nothing is left open."""
    with ExitStack() as closing:
        engine = build_engine(config, registry, runtime=runtime, on_message=phases.callbacks.on_message)
        closing.callback(engine.close)
        engine.check_guidance("objective.kl_cfg", config.objective.kl_cfg)
        engine.times.check_range()
        objective = _objective(engine)
        sigmas = engine.sampler.sigmas(config.rollout.steps, engine.times.schedule)
        sigmas = random_times(engine.sampler, sigmas) if objective.needs_path else sigmas
        timesteps: TimestepPolicy = engine.create("timesteps", config.timesteps)
        _check_timesteps(engine, objective, timesteps, _context(engine, sigmas, 0))
        weighting = engine.create("weighting", config.weighting)
        sources, heldout = engine.load_sources("train"), engine.load_prompts("heldout")
        train = [prompt for source in sources for prompt in source.prompts]
        _check_prompts(engine, objective, phases.callbacks, train, heldout)
        scorer = training_scorer(engine, train)
        evaluator = _evaluator(engine, heldout)
        run = Run(
            **vars(engine),
            objective=objective,
            weighting=weighting,
            timesteps=timesteps,
            training_sigmas=sigmas,
            sources=sources,
            heldout_prompts=heldout,
            probe_prompts=_probe_prompts(engine, train),
            scorer=scorer,
            training_rollout_sampler=engine.rollout_sampler(),
            evaluator=evaluator,
            optimizer=_optimizer(engine, objective, phases, stop),
            phases=phases,
            stop=stop,
        )
        closing.pop_all()
        return run


def _objective(engine: Engine) -> Objective:
    """The loss. Raises UserError for one that learns from paths which the sampler cannot explain."""
    config = engine.config
    made: Objective = engine.create("objective", config.objective)
    if made.needs_path and not has_distribution(engine.sampler):
        what = "is deterministic" if engine.sampler.deterministic else "does not say how its steps are distributed"
        raise UserError(
            f"objective: {config.objective.use} learns from the sampler's random path, but "
            f"rollout.sampler: {config.rollout.sampler.use} {what}; choose a random one that does: "
            f"{samplers_such_that(engine.registry, has_distribution)}"
        )
    made.check(config)
    return made


def _context(engine: Engine, sigmas: Tensor, iteration: int) -> TimestepContext:
    t_min, t_max = engine.times.training_range
    return TimestepContext(
        sigmas=sigmas,
        t_min=t_min,
        t_max=t_max,
        shift=engine.times.schedule.shift,
        iteration=iteration,
        iterations=engine.config.run.iterations,
        deterministic=engine.sampler.deterministic,
    )


def _check_timesteps(engine: Engine, objective: Objective, policy: TimestepPolicy, context: TimestepContext) -> None:
    """Raise UserError if the times cannot be drawn, or are no times of the path that the objective learns from."""
    section = engine.config.timesteps
    policy.check(context, section.count)
    if not objective.needs_path:
        return
    if not section.shared_noise:
        raise UserError(
            "timesteps.shared_noise: a path's states are not noised, so there is no noise to share or not to share "
            f"with objective: {engine.config.objective.use}; leave it out"
        )
    for sigma in policy.draw(section.count, context, engine.draws.at("trial of timesteps")).tolist():
        step_at(sigma, context.sigmas.tolist())


def _check_prompts(
    engine: Engine, objective: Objective, callbacks: Callback, train: Sequence[Prompt], heldout: Sequence[Prompt]
) -> None:
    """Raise UserError for prompts that cannot be drawn. Before the rewards, which may refuse one for what it lacks."""
    engine.check_prompts([*train, *heldout])
    prompts = engine.sized([*train, *heldout])
    sizes = {prompt.size or engine.config.rollout.height_width for prompt in train}
    engine.times.check_sizes(sizes, engine.sampler, objective)
    if (longer := longer_than_read(prompts, engine.backbone)) is not None:
        callbacks.on_warning(f"warning: {longer}")


def _probe_prompts(engine: Engine, train: Sequence[Prompt]) -> list[Prompt]:
    """Training prompts in an order of their own, because files are often sorted by task. Those of the bucket that most
    of them are in: a probe's samples are one tensor."""
    order = engine.draws.at("probe", "prompts").permutation(len(train)).tolist()
    prompts = engine.sized([train[i] for i in order])
    buckets = [bucket(engine.backbone, prompt) for prompt in prompts]
    usual = Counter(buckets).most_common(1)[0][0]
    return [prompt for prompt, found in zip(prompts, buckets, strict=True) if found == usual]


def _evaluator(engine: Engine, prompts: Sequence[Prompt]) -> Evaluator | None:
    """None where nothing is held out; the section must be possible all the same."""
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
        processes=engine.runtime.processes,
    )


def _optimizer(engine: Engine, objective: Objective, phases: Phases, stop: StopRequest) -> Optimizer:
    rollout, processes = engine.config.rollout, engine.runtime.processes
    total = rollout.groups * rollout.group_size * engine.config.timesteps.count // processes.count

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
