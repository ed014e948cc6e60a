"""The rollout phase: draw groups of samples per prompt with a sampler, from keyed noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.draws import Draws, SampleDraws, normal_rows
from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.schedules import of_model
from dgpo_core.flow.sizes import Size, bucket, runs
from dgpo_core.flow.velocity import guidance_at, same_times
from dgpo_core.plugins import contract_checks
from dgpo_core.training.memory import halving
from dgpo_core.types import Conditioning, Prompt, Rollout, SampleResult, Schedule
from dgpo_schemas.sigma import Shift

if TYPE_CHECKING:
    from dgpo_core.contracts import Sampler
    from dgpo_core.training.policy import ConditioningCache, ModelName, Policy

__all__ = ["RolloutSampler"]


class RolloutSampler:
    """Draws samples. Each sample's noise has its own key, so samples do not depend on the micro-batch size."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        conditioning: ConditioningCache,
        *,
        resolution: Size,
        steps: int,
        shift: Shift,
        guidance: float,
        micro_batch: int | None,
        autocast: Callable[[], AbstractContextManager[object]],
        merge_adapter: bool = False,
        guidance_interval: Sequence[float] | None = None,
        interval_key: str = "rollout.guidance_interval",
        training: bool = False,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        """guidance_interval: [low, high], the sigmas that are guided; interval_key: its key in messages; training: for
        rollouts to train on, in which the backbone may approximate its predictions (`Backbone.sampling`)."""
        self.policy = policy
        self.sampler = sampler
        self.conditioning = conditioning
        self.resolution = resolution
        self._shape = cache(partial(contract_checks.latent_shape, policy.backbone))
        self.shape = self._shape(resolution)
        self.device = policy.backbone.device
        self.steps = steps
        self.shift: Shift = shift
        self.guidance_interval = guidance_interval
        self.interval_key = interval_key
        self.training = training
        self._times: dict[Size, list[float]] = {}
        self._starts: dict[Size, tuple[Schedule, float]] = {}
        self.guidance = guidance
        self.micro_batch = micro_batch
        self.autocast = autocast
        self.merge_adapter = merge_adapter
        self.on_message = on_message

    def micro_batches(self, prompts: Sequence[Prompt], members: int) -> list[range]:
        """Return the sample numbers of each micro-batch of `sample_groups`, which are smaller if memory runs out."""
        prompts = [prompt.sized(self.resolution, self.policy.backbone.fps) for prompt in prompts]
        buckets = [bucket(self.policy.backbone, prompt) for prompt in prompts for _ in range(members)]
        size = self.micro_batch or len(buckets)
        return [range(i, min(i + size, run.stop)) for run in runs(buckets) for i in range(run.start, run.stop, size)]

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        members: int,
        draws: SampleDraws,
        model: ModelName,
        *,
        places: Sequence[int] | None = None,
        samples: Sequence[int] | None = None,
        keep_path: bool = False,
    ) -> Iterator[Rollout]:
        """Draw `members` samples per prompt, group by group; yield one rollout per micro-batch.

        samples: the sample numbers to draw, by default all. Sample i, in flat, group-major order, belongs to prompt
        i // members and is drawn with the key `draws.at(group, member)`; places: the group numbers in these keys, by
        default 0, 1, ... A group has the size of its prompt, or of the run; a micro-batch has samples of one bucket.
        """
        chosen = range(len(prompts) * members) if samples is None else samples
        needed = list(dict.fromkeys(i // members for i in chosen))  # the groups of the samples
        if not needed:
            self.policy.agree(list)
            self.policy.finish()
            return
        prompts = [prompt.sized(self.resolution, self.policy.backbone.fps) for prompt in prompts]
        group_prompts = [prompts[g] for g in needed]
        rows = dict(zip(needed, self.conditioning.rows(group_prompts), strict=True))
        unconditional = None
        if self.guidance != 1.0:
            unconditional = dict(zip(needed, self.conditioning.unconditional_rows(group_prompts), strict=True))
        buckets = {g: bucket(self.policy.backbone, prompts[g]) for g in needed}
        start, size = 0, self.micro_batch or len(chosen)
        guided_at: list[tuple[Size, Tensor]] = []

        def draw(count: int) -> Rollout:
            flat = chosen[start : start + count]
            groups = [i // members for i in flat]
            keys = [draws.at(places[i // members] if places else i // members, i % members) for i in flat]
            with self.policy.rows.of(min(size, len(chosen)) if count == wanted else count):
                return self._micro_batch(
                    _of_groups(rows, groups),
                    None if unconditional is None else _of_groups(unconditional, groups),
                    keys,
                    [prompts[i // members] for i in flat],
                    flat,
                    model,
                    keep_path,
                    guided_at,
                )

        stretches = runs([buckets[i // members] for i in chosen])

        def passes(run: slice) -> int:
            micro_batches: int = -(-(run.stop - run.start) // size)
            return micro_batches * self._passes(prompts[chosen[run.start] // members].size or self.resolution)

        self.policy.agree(lambda: [model] * sum(map(passes, stretches)))
        for run in stretches:
            while start < run.stop:
                wanted = min(size, run.stop - start)
                drawn, fits = halving(
                    draw,
                    wanted,
                    "rollout.micro_batch",
                    self.on_message,
                    again=not self.policy.sharded,
                )
                if fits < wanted:
                    self.micro_batch = size = fits
                start += len(drawn.samples)
                yield drawn
        self.policy.finish()
        self._check_times(guided_at)

    def _passes(self, size: Size) -> int:
        """Count the sampler's forward passes per micro-batch."""
        return len(self.evaluated_times(size))

    def evaluated_times(self, size: Size) -> list[float]:
        """Return the times of the sampler's forward passes, in order, from a trial run on the CPU without the
        network."""
        if size not in self._times:
            times: list[float] = []

            def velocity(x_sigma: Tensor, sigma: Tensor) -> Tensor:
                times.append(float(sigma))
                return torch.zeros_like(x_sigma)

            latent, (schedule, _) = torch.zeros(1, *self._shape(size)), self._start(size)
            self.sampler.sample(velocity, latent, steps=self.steps, schedule=schedule, draws=[Draws(0)])
            self._times[size] = times
        return self._times[size]

    def scales(self, size: Size) -> list[float] | None:
        """Return the guidance scale of each forward pass; None if it is the same for all, without an interval.

        Raises UserError if no pass is within the interval.
        """
        if self.guidance == 1 or self.guidance_interval is None:
            return None
        times = self.evaluated_times(size)
        scales = [guidance_at(time, self.guidance, self.guidance_interval) for time in times]
        if all(scale == 1 for scale in scales):
            shown = ", ".join(f"{time:.4g}" for time in times)
            raise UserError(
                f"{self.interval_key}: none of the sampler's {len(times)} times ({shown}) in {self.steps} steps is in "
                f"[{', '.join(f'{end:g}' for end in self.guidance_interval)}], so nothing would be guided; widen the "
                "interval, or set guidance to 1"
            )
        return scales

    @torch.no_grad()
    def _micro_batch(
        self,
        rows: Conditioning,
        unconditional: Conditioning | None,
        keys: list[Draws],
        prompts: list[Prompt],
        samples: Sequence[int],
        model: ModelName,
        keep_path: bool,
        guided_at: list[tuple[Size, Tensor]],
    ) -> Rollout:
        size = prompts[0].size or self.resolution
        noise = normal_rows([key.at("noise") for key in keys], self._shape(size), self.device)
        schedule, scale = self._start(size)
        if scale != 1:
            noise = noise * scale

        scales = self.scales(size)
        seen: list[Tensor] = []

        def velocity(x_sigma: Tensor, sigma: Tensor) -> Tensor:
            guidance = self.guidance
            if scales is not None:  # known in advance: comparing `sigma` here would wait for the device at each step
                guidance = scales[len(seen)] if len(seen) < len(scales) else 1.0
                seen.append(sigma)
            others = unconditional if guidance != 1 else None
            return self.policy.velocity(x_sigma, sigma.expand(len(x_sigma)), rows, others, guidance)

        # The model is active for one micro-batch at a time, because callers may use the policy in between.
        sampling = self.policy.sampling() if self.training else nullcontext()
        with self.policy.activate(model, merged=self.merge_adapter), sampling, self.autocast():
            result = self.sampler.sample(
                velocity, noise, steps=self.steps, schedule=schedule, draws=keys, keep_path=keep_path
            )
        if scales is not None:
            guided_at.append((size, torch.stack(seen)))
        if not isinstance(result, SampleResult) or result.x0.shape != noise.shape:
            returned = (
                f"x0 of shape {tuple(result.x0.shape)}" if isinstance(result, SampleResult) else type(result).__name__
            )
            raise PluginError(
                f"rollout.sampler: {type(self.sampler).__name__} returned {returned}, expected a SampleResult with x0 "
                f"of shape {tuple(noise.shape)}"
            )
        return Rollout(samples, tuple(prompts), result.x0, result.path)

    def _check_times(self, guided_at: Sequence[tuple[Size, Tensor]]) -> None:
        """Raise PluginError unless the passes had the times by which they were guided. Reads them once for all
        micro-batches, because the host waits for the device then.

        guided_at: the size of the samples and the times of the passes, of each micro-batch.
        """
        times = torch.cat([times for _, times in guided_at]).tolist() if guided_at else []
        if not same_times(times, [time for size, _ in guided_at for time in self.evaluated_times(size)]):
            raise PluginError(
                f"{self.interval_key}: is not possible with {type(self.sampler).__name__}, whose times depend on the "
                "samples; use a sampler with fixed times, or remove the interval"
            )

    def _start(self, size: Size) -> tuple[Schedule, float]:
        """Return the noise schedule for samples of this size, and the scale of their initial noise."""
        if size not in self._starts:
            backbone = self.policy.backbone
            schedule = of_model(backbone, size, self.steps, self.shift)
            self._starts[size] = (
                schedule,
                contract_checks.start(backbone, float(self.sampler.sigmas(self.steps, schedule)[0])),
            )
        return self._starts[size]


def _of_groups(rows: Mapping[int, Conditioning], groups: Sequence[int]) -> Conditioning:
    """Return one conditioning row per entry of `groups`, which may contain a group several times."""
    distinct = list(dict.fromkeys(groups))
    position = {g: k for k, g in enumerate(distinct)}
    return Conditioning.cat([rows[g] for g in distinct]).rows([position[g] for g in groups])
