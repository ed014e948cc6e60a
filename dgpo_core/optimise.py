"""The verb *optimise*: exact group statistics at any micro-batch size, then one optimiser update.

A group that fits a micro-batch is evaluated once: all its members' errors are known before backward. A group that does
not fit is gone through twice: first without gradient to complete its statistic S_g, then with gradient. That costs a
forward pass more than accumulating the group's gradient apart and scaling it afterwards, but it needs no second set of
gradients (full fine-tuning!) and stays exact with a KL term, whose gradient is not scaled by sigmoid(S_g).

Legend: g groups, G members, B members in a micro-batch, T timesteps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow import interpolate, velocity_from_x0, velocity_target
from dgpo_core.paths import PathSteps
from dgpo_core.types import Conditioning, PathStep, Predictions, TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import Objective, Sampler
    from dgpo_core.policy import ConditioningCache, Policy
    from dgpo_schemas.run import RunConfig

__all__ = ["Bundle", "Optimiser", "UpdateResult", "bundles"]

Member = tuple[int, int]
Bundle = list[list[Member]]
"""Micro-batches of (group, member) that together complete every group they touch."""


def bundles(active: list[list[int]], micro_batch: int, first: int = 0) -> Iterator[Bundle]:
    """Pack the active members of groups first, first + 1, ... into bundles with at most `micro_batch` members a batch.

    Whole groups share a micro-batch as long as they fit; a group larger than that is a bundle of its own, in nearly
    equal parts. Groups without active members vanish.
    """
    open_batch: list[Member] = []
    for group, members in enumerate(active, first):
        named = [(group, member) for member in members]
        if open_batch and len(open_batch) + len(named) > micro_batch:
            yield [open_batch]
            open_batch = []
        if len(named) <= micro_batch:
            open_batch = open_batch + named
        else:
            parts = -(-len(named) // micro_batch)
            edges = [len(named) * i // parts for i in range(parts + 1)]
            yield [named[a:b] for a, b in pairwise(edges)]
    if open_batch:
        yield [open_batch]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update did. grad_norm is before clipping; nan-free only if `skipped` is False."""

    skipped: bool
    grad_norm: float
    learning_rate: float


class Optimiser:
    """AdamW on the policy's weights, fed with the objective's gradient.

    sampler: the one that drew the paths, for objectives that need them.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        objective: Objective,
        conditioning: ConditioningCache,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        sampler: Sampler | None = None,
        interrupt: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.config = config
        self.section = config.optimiser
        self.policy = policy
        self.objective = objective
        self.conditioning = conditioning
        self.autocast = autocast
        self.sampler = sampler
        # Probabilities of a guided sampler's steps are those of its guided velocity, so that is what is trained.
        self.guidance = config.rollout.guidance if objective.needs_path else 1.0
        self.interrupt = interrupt
        self.progress = progress
        self.updates = 0
        self.members_skipped = 0
        self.members_done = 0
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        section = self.section
        self.adamw = torch.optim.AdamW(
            list(policy.parameters.values()),
            lr=section.learning_rate,
            betas=(section.betas[0], section.betas[1]),
            eps=section.epsilon,
            weight_decay=section.weight_decay,
            fused=True,
        )

    # -- one iteration ------------------------------------------------------------------------------------------

    def step(self, batch: TrainingBatch, sigmas: Tensor, draws: Draws) -> list[UpdateResult]:
        """All updates of an iteration: its groups are split evenly, every update takes all timesteps [T]."""
        groups = len(batch.prompts)
        size = groups // self.section.updates
        results = []
        for first in range(0, groups, size):
            chosen = range(first, first + size)
            self.adamw.zero_grad(set_to_none=True)
            loss = self._accumulate(batch, chosen, sigmas.tolist(), draws, may_interrupt=first == 0)
            results.append(self._update(loss))
        self.adamw.zero_grad(set_to_none=True)
        return results

    def averages(self) -> dict[str, float | None]:
        """Means over all members since the last call, in one transfer from the device."""
        names = list(self._sums)
        if not names:
            return {}
        values = torch.stack([torch.cat(self._sums[n]).double().mean() for n in names]).tolist()
        self._sums.clear()
        return dict(zip(names, values, strict=True))

    def counts(self) -> tuple[int, int]:
        """(members optimised, members skipped for their zero weight) since the last call, times timesteps."""
        counts = self.members_done, self.members_skipped
        self.members_done = self.members_skipped = 0
        return counts

    # -- gradient -----------------------------------------------------------------------------------------------

    def _active(self, batch: TrainingBatch, groups: range) -> list[list[int]]:
        """Members that take part: scored ones in groups of two or more; without zero weights where that is exact."""
        use = batch.scored & (batch.scored.sum(1, keepdim=True) >= 2)
        if self.objective.skips_zero_weights:
            use = use & (batch.signed_weights != 0)
        return [row.nonzero().flatten().tolist() for row in use[groups.start : groups.stop]]

    def _accumulate(
        self, batch: TrainingBatch, groups: range, sigmas: list[float], draws: Draws, *, may_interrupt: bool
    ) -> Tensor:
        """Add the gradient of the mean loss over `groups` and timesteps to the parameters; returns that loss."""
        active = self._active(batch, groups)
        count = sum(map(len, active))
        self.members_done += count * len(sigmas)
        self.members_skipped += (int(batch.scored[groups.start : groups.stop].sum()) - count) * len(sigmas)
        packed = list(bundles(active, self.section.micro_batch or max(batch.x0.shape[1], 1), groups.start))
        conditioning = self.conditioning([batch.prompts[g].text for g in groups])
        steps = self._steps(batch)
        total = torch.zeros((), device=self.policy.backbone.device)
        for bundle in packed:
            parts = [self._gather(batch, members, conditioning, groups) for members in bundle]
            for t, sigma in enumerate(sigmas):
                if may_interrupt:
                    self.interrupt()
                key = draws.at("noise", t)
                batches = [
                    self._at(part, sigma, key) if steps is None else self._on(part, sigma, steps) for part in parts
                ]
                total += self._bundle(batches, len(groups) * len(sigmas))
                self.progress(sum(map(len, bundle)))
        return total

    def _bundle(self, batches: list[_MicroBatch], terms: int) -> Tensor:
        """Forward and backward of a bundle at one timestep; returns its share of a loss that is a mean over `terms`
        groups and timesteps."""
        statistic = None
        if self.objective.needs_statistic and len(batches) > 1:
            with torch.no_grad():
                shares = [self.objective.statistic(b.predictions(self._velocity(b))) for b in batches]
            statistic = torch.cat(shares).sum()
        loss = torch.zeros((), device=self.policy.backbone.device)
        for b in batches:
            predictions = b.predictions(self._velocity(b))
            s = None
            if self.objective.needs_statistic:
                if statistic is not None:
                    s = statistic.expand(len(b.sigma))
                else:
                    # A product, because a scattered sum is not deterministic on CUDA.
                    s = b.members.same_group @ self.objective.statistic(predictions)
            result = self.objective.loss(predictions, s)
            # Mean over a group's scored members, over the groups of this update and over the timesteps.
            scaled = (result.loss / b.members.group_size).sum() / terms
            if scaled.requires_grad:
                scaled.backward()  # type: ignore[no-untyped-call]
            loss += scaled.detach()
            for name, values in result.metrics.items():
                self._sums[name].append(values)
        return loss

    def _gather(
        self, batch: TrainingBatch, members: list[Member], conditioning: Conditioning, groups: range
    ) -> _Members:
        """What a micro-batch's members bring to every timestep, copied to the device once."""
        device = batch.x0.device
        g, m = torch.tensor(members).T.contiguous()
        present, group = g.unique(return_inverse=True)
        x0 = batch.x0[g.to(device), m.to(device)]
        shared = self.config.timesteps.shared_noise

        def put(values: Tensor) -> Tensor:
            return values.to(device=device, dtype=x0.dtype)

        return _Members(
            samples=[i * batch.x0.shape[1] + j for i, j in members],
            x0=x0,
            conditioning=conditioning.rows((g - groups.start).to(device)),
            advantages=put(batch.advantages[g, m]),
            signed_weights=put(batch.signed_weights[g, m]),
            group_size=put(batch.scored.sum(1)[g]),
            same_group=put(group[:, None] == group),
            noise_keys=[(int(i),) for i in present] if shared else list(members),
            noise_row=(group if shared else torch.arange(len(members))).to(device),
        )

    def _at(self, members: _Members, sigma: float, key: Draws) -> _MicroBatch:
        """The members at one timestep: their noise, and the other models' predictions."""
        x0 = members.x0
        rows = normal_rows([key.at(*k) for k in members.noise_keys], tuple(x0.shape[1:]), x0.device)
        noise = rows[members.noise_row].to(x0.dtype)
        sigmas = x0.new_full((len(x0),), sigma)
        b = _MicroBatch(members, interpolate(x0, noise, sigmas), velocity_target(x0, noise), sigmas)
        b.reference, b.old = self._others(b)
        return b

    def _steps(self, batch: TrainingBatch) -> PathSteps | None:
        """The steps to learn from, if the objective learns from steps."""
        if not self.objective.needs_path:
            return None
        assert self.sampler is not None
        assert batch.paths
        return PathSteps(batch.paths, self.sampler)

    def _on(self, members: _Members, sigma: float, steps: PathSteps) -> _MicroBatch:
        """The members at a step of their paths: the state there in the place of a noised x0."""
        step = steps.at(sigma, members.samples)
        sigmas = step.x.new_full((len(step.x),), sigma)
        b = _MicroBatch(members, step.x, velocity_from_x0(step.x, members.x0, sigmas), sigmas, step=step)
        b.reference, b.old = self._others(b)
        return b

    def _velocity(self, b: _MicroBatch) -> Tensor:
        """The prediction of the view in place. Autocast is entered anew for every view: it remembers its casts by the
        parameter, whose data are another view's now."""
        return self._guided(b, self.guidance)

    def _guided(self, b: _MicroBatch, guidance: float) -> Tensor:
        # Texts are encoded outside of autocast, as everywhere.
        unconditional = self.conditioning([""]).expand(len(b.sigma)) if guidance != 1.0 else None
        with self.autocast():
            return self.policy.velocity(b.x_sigma, b.sigma, b.members.conditioning, unconditional, guidance)

    @torch.no_grad()
    def _others(self, b: _MicroBatch) -> tuple[Tensor | None, Tensor | None]:
        """(reference, old) predictions of a micro-batch; the fast EMA is run once for both uses."""
        objective, section = self.objective, self.config.objective
        dynamic = section.reference == "ema"
        reference = old = None
        if objective.needs_old or (objective.needs_reference and dynamic):
            with self.policy.view("old"):
                old = self._velocity(b)
        if objective.needs_reference and dynamic:
            reference = old
        elif objective.needs_reference:
            with self.policy.view("base"):
                reference = self._guided(b, max(self.guidance, section.kl_cfg))  # at most one of them is not 1
        return reference, old

    # -- update -------------------------------------------------------------------------------------------------

    def learning_rate(self, update: int) -> float:
        """Learning rate of update number `update`, counted from 0."""
        section = self.section
        rate = section.learning_rate
        if update < section.warmup:
            return rate * (update + 1) / section.warmup
        total = self.config.run.iterations * section.updates
        left = 1 - (update - section.warmup) / max(total - section.warmup, 1)
        if section.schedule == "linear":
            return rate * max(left, 0.0)
        if section.schedule == "cosine":
            return rate * 0.5 * (1 - float(torch.tensor(torch.pi * max(left, 0.0), dtype=torch.float64).cos()))
        return rate

    def _update(self, loss: Tensor) -> UpdateResult:
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        rate = self.learning_rate(self.updates)
        if not parameters:  # every group was skipped: nothing to learn from, and nothing wrong
            return UpdateResult(False, 0.0, rate)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.section.max_grad_norm or torch.inf)
        finite, value = torch.stack([(norm + loss).isfinite().to(norm.dtype), norm]).tolist()
        if not finite:
            return UpdateResult(True, value, rate)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.updates += 1
        self.policy.update_averages(self.updates)
        return UpdateResult(False, value, rate)

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments as `name/key` tensors; a parameter that was never updated has none."""
        names = {id(p): name for name, p in self.policy.parameters.items()}
        return {f"{names[id(p)]}/{key}": value for p, s in self.adamw.state.items() for key, value in s.items()}

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore what `state` returned."""
        self.updates = updates
        self.adamw.state.clear()
        for name, parameter in self.policy.parameters.items():
            keys = {
                key: state[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in state
            }
            if keys:
                self.adamw.state[parameter] = {key: value.to(parameter.device) for key, value in keys.items()}


@dataclass(frozen=True, slots=True)
class _Members:
    """B members of a micro-batch, on the device, whatever the timestep.

    samples: their places in the flat, group-major order; same_group [B, B]: 1 where two members belong to one group;
    noise_keys: the draws of a timestep, of which member i takes row noise_row[i].
    """

    samples: list[int]
    x0: Tensor
    conditioning: Conditioning
    advantages: Tensor
    signed_weights: Tensor
    group_size: Tensor
    same_group: Tensor
    noise_keys: list[tuple[int, ...]]
    noise_row: Tensor


@dataclass(slots=True)
class _MicroBatch:
    """B members at one timestep, with the other models' predictions."""

    members: _Members
    x_sigma: Tensor
    target: Tensor
    sigma: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    step: PathStep | None = None

    def predictions(self, velocity: Tensor) -> Predictions:
        """What the objective sees."""
        return Predictions(
            velocity=velocity,
            target=self.target,
            sigma=self.sigma,
            advantages=self.members.advantages,
            signed_weights=self.members.signed_weights,
            group_size=self.members.group_size,
            reference=self.reference,
            old=self.old,
            step=self.step,
        )
