"""Run an iteration of the engine on a model without values, to count its operations, kernels, copies and memory.

The plan uses the real RolloutSampler, Policy and Optimizer, so it follows every change of the training step. Forward
and backward passes and decoding run once per shape of micro-batch (a pass that fills autocast's cache of weights, and
one that finds it filled); their cost is counted again for the other micro-batches. The loss is computed at one training
timestep of each cost and counted for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone, TimestepContext
from dgpo_core.distributed.processes import Processes, split_samples
from dgpo_core.draws import Draws
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.flow.paths import random_times
from dgpo_core.flow.times import Times
from dgpo_core.flow.velocity import guidance_at
from dgpo_core.training.batch_sizes import drawn_at_once
from dgpo_core.training.checks import check_sampling
from dgpo_core.training.microbatches import Update
from dgpo_core.training.optimizer import Optimizer, UpdateResult
from dgpo_core.training.policy import ConditioningCache, ModelName, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.types import Conditioning, Rollout, ScoredGroups
from dgpo_lab.planning.meter import Counted, Lap, Meter
from dgpo_lab.planning.shapes import CUDA
from dgpo_lab.planning.waiting import Waiting

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["Iteration", "Laps"]

Laps = dict[Any, tuple[Lap, torch.Size, torch.dtype]]
"""The cost of a pass and the shape and dtype of its output, by the properties that the cost depends on."""


class Iteration:
    """The cost of an iteration on the one of `processes` ranks that has most samples.

    phases: what the rank's samples cost by phase: rollout, decode, optimize (the gradient at all timesteps) and update
    (AdamW and the averages); peaks: bytes by phase, above the permanently held memory (see `plan`), the update's as
    those of optimize; samples: the number of samples of the rank that are trained on; drawn: FLOPs of rollout and
    decode over all ranks; evaluated: FLOPs to evaluate one sample; passes: numbers of the network's passes by phase,
    `plain` or with `gradient`.
    """

    def __init__(
        self,
        config: RunConfig,
        backbone: Backbone,
        registry: Registry,
        meter: Meter,
        laps: Laps,
        *,
        processes: int = 1,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.phases: dict[str, Counted] = {}
        self.peaks: dict[str, int] = {}
        self.passes: dict[str, Counter[str]] = {}
        self.drawn = 0.0
        self._passed: Counter[str] = Counter()
        self.meter = meter
        rollout, evaluation = config.rollout, config.evaluation
        parts = split_samples(rollout.groups, rollout.group_size, config.optimizer.updates, processes)
        local = max(parts, key=len)
        self.samples = len(local)
        cache = ConditioningCache(backbone)
        sampler = registry.create("sampler", rollout.sampler)
        objective = registry.create("objective", config.objective)
        sharded = bool(config.run.shard) and processes > 1
        check_sampling(config, backbone, objective, sharded=sharded)
        prompts = [backbone.example(rollout.height_width).sized(rollout.height_width, backbone.fps)] * rollout.groups

        def autocast() -> torch.autocast:
            policy.new_autocast()
            return torch.autocast(meter.device.type, torch.bfloat16, enabled=config.precision.autocast == "bf16")

        def rollout_sampler(
            sampler: Any,
            steps: int | None,
            guidance: float | None,
            interval: Sequence[float] | None,
            *,
            training: bool = False,
        ) -> RolloutSampler:
            created = RolloutSampler(
                policy, sampler, cache, resolution=rollout.height_width, steps=steps or rollout.steps,
                shift=rollout.shift, guidance=rollout.guidance if guidance is None else guidance,
                micro_batch=drawn_at_once(config, CUDA), autocast=autocast, merge_adapter=rollout.merge_adapter,
                guidance_interval=interval or rollout.guidance_interval, training=training,
                interval_key=f"{'evaluation' if interval else 'rollout'}.guidance_interval",
            )  # fmt: skip
            created.scales(rollout.height_width)
            return created

        # Outside of the meter, in which large tensors have no values: which members are trained on depends on them.
        rewards = torch.randn(rollout.groups, rollout.group_size, dtype=torch.float64, generator=Draws(0).generator())
        scored = torch.ones_like(rewards, dtype=torch.bool)
        with meter, closing(_Policy(backbone, config.objective, meter, laps, self._passed)) as policy:
            policy.sharded = sharded
            optimizer = _Optimizer(
                self._phase, _with_32_bit_adamw(config), policy, objective, cache, autocast=autocast, sampler=sampler,
                processes=_One(parts.index(local), processes),
                progress=lambda done: on_message(f"optimize: {done} samples"), look=lambda tensor: tensor.tolist(),
            )  # fmt: skip
            for parameter in policy.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.adamw.step()  # allocates the moments, which are held permanently
            optimizer.adamw.zero_grad()
            meter.hold()
            cache.rows(prompts)  # apart from the phases: prompts are encoded once
            if rollout.guidance != 1:
                cache.unconditional_rows(prompts)

            def draw(members: int, steps: int, *, trained: bool) -> list[Rollout]:
                """Draw and decode the rank's samples of a round; return those that are trained on."""
                split = split_samples(rollout.groups, members, config.optimizer.updates, processes)
                numbers, kept, done, before = split[parts.index(local)], [], 0, self._drawn_by_rank
                waiting = Waiting(config, registry)
                drawing = rollout_sampler(sampler, steps, None, None, training=True).sample_groups(
                    prompts, members, Draws(0), "policy", samples=numbers, keep_path=trained and objective.needs_path
                )
                while True:
                    on_message(f"rollout: {done} of {len(numbers)} samples")
                    with self._phase("rollout"):
                        sampled = next(drawing, None)
                    if sampled is None:
                        break
                    done += len(sampled.samples)
                    if trained:
                        kept.append(sampled)
                    with self._phase("decode"):
                        media = policy.decode_rollouts(sampled.x0)
                    waiting.add(media)
                    del media
                self.drawn += (self._drawn_by_rank - before) * rollout.groups * members / len(numbers)
                return kept

            *candidates, last = rollout.rounds
            for one in candidates:
                draw(*one, trained=False)
            rollouts = draw(*last, trained=True)
            groups = ScoredGroups(
                prompts=tuple(prompts), x0=[x for r in rollouts for x in r.x0], own=local, rewards=rewards,
                summed=rewards, scored=scored, per_reward={},
                diversity=rewards[:, 0], paths=tuple(r.path for r in rollouts if r.path is not None),
            )  # fmt: skip
            batch = compute_advantages(groups, config.advantages, registry.create("weighting", config.weighting))
            sigmas = _sigmas(config, backbone, registry, sampler, objective)
            for sigma, count in _kinds(config, sigmas, guided=objective.needs_path):
                optimizer.times, optimizer.passes = count, config.optimizer.passes
                on_message("optimize: 0 samples")
                optimizer.step(batch, sigma, Draws(0))
            batch_size = len(rollouts[0].samples)
            del rollouts, groups, batch
            on_message("evaluation")
            another = sampler if evaluation.sampler is None else registry.create("sampler", evaluation.sampler)
            with meter.lap() as lap:
                evaluating = rollout_sampler(
                    another, evaluation.steps, evaluation.guidance, evaluation.guidance_interval
                )
                for sampled in evaluating.sample_groups(prompts[:1] * batch_size, 1, Draws(0), "policy"):
                    policy.decode(sampled.x0)
            self.evaluated = lap.operations / batch_size

    @contextmanager
    def _phase(self, name: str, times: int = 1) -> Iterator[None]:
        """Count what runs inside `times` times."""
        held, passed = self.meter.now, Counter(self._passed)
        with self.meter.lap() as lap:
            yield
        passes = self.passes.setdefault(name, Counter())
        for kind, count in (self._passed - passed).items():
            passes[kind] += times * count
        for _ in range(times):
            self.phases.setdefault(name, Counted()).add(lap)
        phase = "optimize" if name == "update" else name
        self.peaks[phase] = max(self.peaks.get(phase, 0), held + lap.peak)

    @property
    def _drawn_by_rank(self) -> int:
        return self.operations["rollout"] + self.operations["decode"]

    @property
    def operations(self) -> Counter[str]:
        """FLOPs of the rank's samples by phase."""
        return Counter({name: counted.operations for name, counted in self.phases.items()})


class _Optimizer(Optimizer):
    """An optimizer whose gradient counts for several timesteps that cost the same, and its update once; both for each
    pass over the groups."""

    times = passes = 1

    def __init__(self, phase: Callable[..., AbstractContextManager[None]], *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._phase = phase

    def update(self, update: Update, interrupt: Callable[[], None] = lambda: None) -> UpdateResult:
        with self._phase("optimize", self.times * self.passes):
            gradient = self.accumulation.add(update, interrupt)
        with self._phase("update", self.passes):
            return self.apply(gradient)


class _Policy(Policy):
    """A policy that runs each pass once per shape.

    A backbone with several networks counts as one: the network of the first timestep at which a shape occurs.
    """

    def __init__(
        self, backbone: Backbone, objective: ObjectiveSection, meter: Meter, laps: Laps, passed: Counter[str]
    ) -> None:
        """passed: counts the passes by kind."""
        super().__init__(backbone, objective)
        self._passed = passed
        self._meter, self._laps = meter, laps
        self._merged = self._filled = False
        self._step: int | None = None
        self._pending: tuple[Any, Tensor, Tensor] | None = (
            None  # the key of a pass, its output, and the leaf returned instead
        )

        def hold(parameter: Tensor) -> None:
            """Count the gradients of the trained weights as permanently held."""
            if parameter.grad is not None:
                meter.hold(parameter.grad)

        self._hooks = [
            p.register_post_accumulate_grad_hook(hold)  # type: ignore[no-untyped-call]
            for p in self.parameters.values()
        ]

    @property
    def fast_is_policy(self) -> bool:
        """See Policy.fast_is_policy; late in a run, because a plan is of most of its iterations, and for one that moves
        per iteration as in updates after the first, so that the first of each iteration counts a pass too many."""
        fast = self.objective.ema_fast
        return fast.per == "update" and min(fast.max_decay, fast.ramp) == 0

    def _point_at(self, model: ModelName) -> None:
        """All stored models cost the same: the trained one is not replaced, which a plan does hundreds of times."""
        self._changed = True

    def close(self) -> None:
        """Remove the hooks from the backbone."""
        for hook in self._hooks:
            hook.remove()

    def new_autocast(self) -> None:
        """Note that autocast's cache of weights is empty."""
        self._filled = False

    @contextmanager
    def activate(self, name: ModelName, *, merged: bool = False) -> Iterator[None]:
        before, self._merged = self._merged, self._merged or merged
        try:
            with super().activate(name, merged=merged):
                yield
        finally:
            self._merged = before

    def velocity(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        self._pending = None
        learning, adapted = torch.is_grad_enabled(), self._active in self._weights
        self._passed["gradient" if learning else "plain"] += 1
        rows = tuple(tensor.shape for tensor in conditioning.tensors.values())
        filled = self._filled or not torch.is_autocast_enabled(self._meter.device.type)
        self._filled = True
        key = ("pass", learning, adapted, self._merged, filled, guidance == 1, self._step, x_sigma.shape, rows)
        if self._step is not None:
            self._step += 1
        out, left = self._once(
            key, lambda: super(_Policy, self).velocity(x_sigma, sigma, conditioning, unconditional, guidance)
        )
        if not learning:
            return out
        leaf = out.detach().requires_grad_()
        self._pending = key, left, leaf
        return leaf

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """See Policy.sampling. Within an approximation, each step has its own cost."""
        self._step = None if self.backbone.sampling() is None else 0
        try:
            with super().sampling():
                yield
        finally:
            self._step = None

    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents with the backbone, once per shape."""
        return self._once(("decode", x0.shape), lambda: self.backbone.decode(x0))[0]

    def decode_rollouts(self, x0: Tensor) -> Tensor:
        """Decode latents of rollouts with the backbone, once per shape."""
        return self._once(("decode_rollouts", x0.shape), lambda: self.backbone.decode_rollouts(x0))[0]

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        assert self._pending is not None
        (key, out, leaf), self._pending = self._pending, None

        def backward() -> Tensor:
            out.backward(leaf.grad)  # type: ignore[no-untyped-call]
            return loss.detach()

        self._once(("backward", key), backward)

    def _once(self, key: Any, work: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the output of `work`, and a tensor that holds the memory that the work leaves allocated."""
        if key not in self._laps:
            with self._meter.lap() as lap:
                out = work()
            self._laps[key] = lap, out.shape, out.dtype
            return out, out
        lap, shape, dtype = self._laps[key]
        self._meter.again(lap)
        device = self._meter.device
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        return out, torch.empty(max(lap.left - out.nbytes, 0), dtype=torch.uint8, device=device)


class _One(Processes):
    """One of several ranks with the same amount of work; reductions return the local tensors."""

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)


def _with_32_bit_adamw(config: RunConfig) -> RunConfig:
    """Use 32-bit moments, because the kernels for 8-bit moments need real values; `plan` computes their memory."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"bits": 32})})


def _kinds(config: RunConfig, sigmas: Tensor, *, guided: bool) -> list[tuple[Tensor, int]]:
    """Return a timestep [1] of each cost, and the number of timesteps that cost as much: all timesteps cost the same,
    except that `guided` ones outside of the guidance interval run one pass instead of two."""
    first: dict[float, Tensor] = {}
    counts: Counter[float] = Counter()
    for i, sigma in enumerate(sigmas.tolist()):
        interval = config.rollout.guidance_interval
        scale = guidance_at(sigma, config.rollout.guidance, interval) if guided else 1.0
        first.setdefault(scale, sigmas[i : i + 1])
        counts[scale] += 1
    return [(sigma, counts[scale]) for scale, sigma in first.items()]


def _sigmas(config: RunConfig, backbone: Backbone, registry: Registry, sampler: Any, objective: Any) -> Tensor:
    """Return the training timesteps of the first iteration as sigmas."""
    times = Times(config, backbone)
    sigmas = sampler.sigmas(config.rollout.steps, times.schedule)
    t_min, t_max = times.training_range
    context = TimestepContext(
        sigmas=random_times(sampler, sigmas) if objective.needs_path else sigmas, t_min=t_min, t_max=t_max,
        shift=times.schedule.shift, iteration=0, iterations=config.run.iterations, deterministic=sampler.deterministic,
        all_sigmas=sigmas,
    )  # fmt: skip
    drawn: Tensor = registry.create("timesteps", config.timesteps).draw(config.timesteps.count, context, Draws(0))
    return drawn
