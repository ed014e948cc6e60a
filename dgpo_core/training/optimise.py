"""The verb *optimise*: exact group statistics at any micro-batch size, then one optimiser update.

A group that fits a micro-batch is evaluated once: all its members' errors are known before backward. A group that does
not fit is gone through twice: first without gradient to complete its statistic S_g, then with gradient. That costs a
forward pass more than accumulating the group's gradient apart and scaling it afterwards, but it needs no second set of
gradients (full fine-tuning!) and stays exact with a KL term, whose gradient is not scaled by sigmoid(S_g).

With several processes each works on its own samples. The statistics of groups that are spread over processes are
completed first, all those of an update in one reduction; a second one adds the gradients. There are no others.

Legend: g groups, G members, B members in a micro-batch, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.distributed.processes import Processes, shares
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import PathSteps
from dgpo_core.flow.sizes import bucket
from dgpo_core.plugins import promises
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.adamw import make_adamw, restore, state_of
from dgpo_core.training.memory import halving
from dgpo_core.training.microbatches import Bundle, Members, MicroBatch, Update
from dgpo_core.types import TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import Objective, Sampler
    from dgpo_core.distributed.passes import Pass
    from dgpo_core.training.policy import ConditioningCache, Policy
    from dgpo_schemas.run import RunConfig

__all__ = ["Optimiser", "UpdateResult"]


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
        processes: Processes | None = None,
        tell: Callable[[str], None] = lambda text: None,
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
        self.processes = processes or Processes()
        self.tell = tell
        self.micro_batch = config.optimiser.micro_batch or max(config.rollout.group_size, 1)
        # Probabilities of a guided sampler's steps are those of its guided velocity, so that is what is trained.
        self.guidance = config.rollout.guidance if objective.needs_path else 1.0
        self.interrupt = interrupt
        self.progress = progress
        self.updates = 0
        self.members_skipped = 0
        self.members_done = 0
        self._sums: dict[str, list[Tensor]] = {}
        self._sums_before: dict[str, list[Tensor]] = {}
        if self.section.bits == 8 and policy.spread:
            raise UserError("optimiser.bits: weights that run.shard spreads over processes have moments of 32 bits")
        self.adamw = make_adamw(policy.parameters.values(), self.section)

    # -- one iteration ------------------------------------------------------------------------------------------

    def step(self, batch: TrainingBatch, sigmas: Tensor, draws: Draws) -> list[UpdateResult]:
        """All updates of an iteration: its groups are split evenly, every update takes all timesteps [T]."""
        groups = len(batch.prompts)
        size = groups // self.section.updates
        results = []
        for first in range(0, groups, size):
            chosen = range(first, first + size)
            results.append(self.update(batch, chosen, sigmas.tolist(), draws, may_interrupt=first == 0))
        self.adamw.zero_grad(set_to_none=True)
        return results

    def update(
        self, batch: TrainingBatch, groups: range, sigmas: list[float], draws: Draws, *, may_interrupt: bool = False
    ) -> UpdateResult:
        """One update from some groups of the batch, at all timesteps; the gradient is left in place."""
        self.adamw.zero_grad(set_to_none=True)
        return self._update(self._accumulate(batch, groups, sigmas, draws, may_interrupt=may_interrupt))

    def averages(self) -> dict[str, float | None]:
        """Means over all members of all processes since the last call, in one transfer from the device."""
        names = list(self._sums)
        values = torch.stack([torch.cat(self._sums[n]).double().mean() for n in names]).tolist() if names else []
        counts = [sum(map(len, self._sums[n])) for n in names]
        self._sums.clear()
        if self.processes.count == 1:
            return dict(zip(names, values, strict=True))
        everyone = self.processes.everyone({n: (v, k) for n, v, k in zip(names, values, counts, strict=True)})
        parts = {n: [part[n] for part in everyone if n in part] for part in everyone for n in part}
        return {n: sum(v * k for v, k in found) / sum(k for _, k in found) for n, found in parts.items()}

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
        """Add the gradient of the mean loss over `groups` and timesteps to the parameters; returns that loss.

        Raises Interrupted if this process, or another, was asked to stop.
        """
        active = self._active(batch, groups)
        count = sum(map(len, active))
        self.members_done += count * len(sigmas)
        self.members_skipped += (int(batch.scored[groups.start : groups.stop].sum()) - count) * len(sigmas)
        if not count:  # nothing to learn from, in any process
            return torch.zeros((), device=self.policy.backbone.device)
        interrupt = self.interrupt if may_interrupt else lambda: None
        own, spread = self._own(batch, active, groups)
        buckets = [bucket(self.policy.backbone, batch.prompts[g]) for g in groups]
        update = Update(
            batch, groups, own, spread, buckets, sigmas, draws, self.conditioning.rows, self._steps(batch),
            self.config.timesteps.shared_noise,
        )  # fmt: skip
        complete = None
        if self.objective.needs_statistic and any(spread):
            complete = self._complete(update, interrupt)
        with self._noting() as asked:
            loss = torch.zeros((), device=self.policy.backbone.device)
            loss = self._halving(lambda size: self._gradient(update, complete, size, interrupt))
        return loss if self.processes.count == 1 else self._add_gradients(loss, asked)

    def _gradient(self, update: Update, complete: Tensor | None, size: int, interrupt: Callable[[], None]) -> Tensor:
        """Gradients of this process's members, in micro-batches of `size`; returns their share of the loss."""
        self.adamw.zero_grad(set_to_none=True)  # of an attempt that ran out of memory
        self._sums = {name: list(values) for name, values in self._sums_before.items()}
        total = torch.zeros((), device=self.policy.backbone.device)
        bundles = list(update.bundles(update.own, size))
        self.policy.agree(lambda: [one for bundle in bundles for one in self._passes(update, bundle)])
        for bundle in bundles:
            parts = [update.gather(members) for members in bundle]
            for t in range(len(update.sigmas)):
                interrupt()
                batches = [self._at(update, part, t) for part in parts]
                total += self._bundle(update, batches, None if complete is None else complete[t])
                self.progress(sum(map(len, bundle)))
        return total

    def _halving(self, work: Callable[[int], Tensor]) -> Tensor:
        """Work that begins anew with smaller micro-batches when memory runs out; these stay so small."""
        self._sums_before = {name: list(values) for name, values in self._sums.items()}
        done, self.micro_batch = halving(
            work, self.micro_batch, "optimiser.micro_batch", self.tell, again=not self.policy.sharded
        )
        return done

    def _bundle(self, update: Update, batches: list[MicroBatch], complete: Tensor | None) -> Tensor:
        """Forward and backward of a bundle at one timestep; returns its share of the mean loss of the update.

        complete [groups]: statistics of the groups that are spread over processes, nan of the others.
        """
        terms = len(update.groups) * len(update.sigmas)
        statistic = None
        if self._twice(update, [b.members.names for b in batches]):
            with torch.no_grad():
                parts = [self.objective.statistic(b.predictions(self._velocity(b))) for b in batches]
            statistic = torch.cat(parts).sum()
        loss = torch.zeros((), device=self.policy.backbone.device)
        for b in batches:
            predictions = b.predictions(self._velocity(b))
            if not predictions.velocity.requires_grad:
                raise promises.broken(self.policy.backbone, "`velocity` has no gradient, so nothing would be learnt")
            s = None
            if self.objective.needs_statistic:
                if statistic is not None:
                    s = statistic.expand(len(b.sigma))
                else:
                    # A product, because a scattered sum is not deterministic on CUDA.
                    s = b.members.same_group @ self.objective.statistic(predictions)
                if complete is not None:
                    known = complete[b.members.group].to(s)
                    s = torch.where(known.isnan(), s, known)
            result = self.objective.loss(predictions, s)
            # Mean over a group's scored members, over the groups of this update and over the timesteps.
            scaled = (result.loss / b.members.group_size).sum() / terms
            if scaled.requires_grad:
                self.policy.backward(scaled)
            loss += scaled.detach()
            for name, values in result.metrics.items():
                self._sums.setdefault(name, []).append(values)
        return loss

    def _twice(self, update: Update, bundle: Bundle) -> bool:
        """Whether the statistic of the single group that a bundle's several micro-batches are of has to be found."""
        return self.objective.needs_statistic and len(bundle) > 1 and not update.is_spread(bundle[0])

    def _passes(self, update: Update, bundle: Bundle) -> list[Pass]:
        """Those of a bundle at all timesteps."""
        count = len(bundle)
        policy: list[Pass] = ["policy"] * (count if self._twice(update, bundle) else 0) + ["gradient"] * count
        return (self._others(statistic_only=False) * count + policy) * len(update.sigmas)

    def _at(self, update: Update, members: Members, t: int, *, statistic_only: bool = False) -> MicroBatch:
        """The members at one timestep, with the other models' predictions, or those that the statistic needs."""
        b = update.at(members, t)
        b.loss_weight = promises.loss_weight(self.policy.backbone, b.sigma)
        self._add_predictions(b, statistic_only=statistic_only)
        return b

    def _steps(self, batch: TrainingBatch) -> PathSteps | None:
        """The steps to learn from, if the objective learns from steps."""
        if not self.objective.needs_path:
            return None
        assert self.sampler is not None
        assert batch.paths
        return PathSteps(batch.paths, self.sampler)

    def _velocity(self, b: MicroBatch) -> Tensor:
        """The prediction of the view in place. Autocast is entered anew for every view: it remembers its casts by the
        parameter, whose data are another view's now."""
        return self._guided(b, self.guidance)

    def _guided(self, b: MicroBatch, guidance: float) -> Tensor:
        # Texts are encoded outside of autocast, as everywhere.
        unconditional = self.conditioning.unconditional(b.members.prompts) if guidance != 1.0 else None
        with self.autocast():
            return self.policy.velocity(b.x_sigma, b.sigma, b.members.conditioning, unconditional, guidance)

    @torch.no_grad()
    def _add_predictions(self, b: MicroBatch, *, statistic_only: bool) -> None:
        """Predictions of the reference, the frozen base and the fast EMA for a micro-batch. Each model runs once,
        whatever the number of its uses: a frozen reference is the base, a dynamic one the fast EMA."""
        others = self._others(statistic_only=statistic_only)
        if "old" in others:
            with self.policy.view("old"):
                b.old = self._velocity(b)
        if "base" in others:
            with self.policy.view("base"):  # at most one of the two is not 1
                b.base = self._guided(b, max(self.guidance, self.config.objective.kl_cfg))
        if self.objective.needs_reference:
            b.reference = b.old if self.config.objective.reference == "ema" else b.base

    def _others(self, *, statistic_only: bool) -> list[Pass]:
        objective, dynamic = self.objective, self.config.objective.reference == "ema"
        old = (objective.needs_old and not statistic_only) or (objective.needs_reference and dynamic)
        base = (objective.needs_base and not statistic_only) or (objective.needs_reference and not dynamic)
        return [*(["old"] if old else []), *(["base"] if base else [])]

    # -- several processes --------------------------------------------------------------------------------------

    def _own(self, batch: TrainingBatch, active: list[list[int]], groups: range) -> tuple[list[list[int]], list[bool]]:
        """This process's active members of each group, and whether the group's active members belong to several
        processes, which all of them find alike."""
        if self.processes.count == 1:
            return active, [False] * len(active)
        total, members = batch.scored.shape
        parts = shares(total, members, self.section.updates, self.processes.count)
        owner = {sample: rank for rank, part in enumerate(parts) for sample in part}
        owners = [[owner[g * members + m] for m in some] for g, some in zip(groups, active, strict=True)]
        own = [
            [m for m, rank in zip(some, ranks, strict=True) if rank == self.processes.rank]
            for some, ranks in zip(active, owners, strict=True)
        ]
        return own, [len(set(ranks)) > 1 for ranks in owners]

    def _complete(self, update: Update, interrupt: Callable[[], None]) -> Tensor:
        """Statistics [T, groups] of the groups that are spread over processes, in one reduction; nan of the others."""
        weight = next(iter(self.policy.parameters.values()))
        far = torch.tensor(update.spread, device=weight.device)
        some = [members if it else [] for members, it in zip(update.own, update.spread, strict=True)]
        nothing = torch.zeros(len(update.sigmas), len(far), device=weight.device, dtype=weight.dtype)

        @torch.no_grad()
        def statistics(size: int) -> Tensor:
            table = nothing.clone()
            parts = [part for bundle in update.bundles(some, size) for part in bundle]
            others: list[Pass] = [*self._others(statistic_only=True), "policy"]
            self.policy.agree(lambda: others * (len(parts) * len(table)))
            for part in map(update.gather, parts):
                of_group = (part.group == torch.arange(len(far), device=weight.device)[:, None]).to(table.dtype)
                for t in range(len(table)):
                    interrupt()
                    b = self._at(update, part, t, statistic_only=True)
                    table[t] += of_group @ self.objective.statistic(b.predictions(self._velocity(b))).to(table)
            return table

        found = nothing
        with self._noting() as asked:
            found = self._halving(statistics)
        return self._added([found], asked)[0].masked_fill(~far, torch.nan)

    def _add_gradients(self, loss: Tensor, asked: list[bool]) -> Tensor:
        """Give every process the sum of all processes' gradients; returns the sum of their losses."""
        # Gradients of spread weights were added by their backward passes.
        parameters = [] if self.policy.spread else list(self.policy.parameters.values())
        known = loss.new_tensor([p.grad is not None for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total, known, *sums = self._added([loss, known, *gradients], asked)
        for p, gradient, there in zip(parameters, sums, known.tolist(), strict=True):
            p.grad = gradient.to(p.dtype) if there else None  # AdamW leaves a parameter without a gradient alone
        return total

    def _added(self, tensors: list[Tensor], asked: list[bool]) -> list[Tensor]:
        """Sums over processes. Whether one was asked to stop travels along; then all of them raise Interrupted."""
        *sums, stop = self.processes.add([*tensors, tensors[0].new_tensor([float(any(asked))])])
        if bool(stop):
            raise Interrupted
        return sums

    @contextmanager
    def _noting(self) -> Iterator[list[bool]]:
        """Notes that work was interrupted, for the others have to be told. A single process just stops."""
        asked: list[bool] = []
        try:
            yield asked
        except Interrupted:
            if self.processes.count == 1:
                raise
            asked.append(True)
        self.policy.finish()

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
        norm = self.policy.norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, self.section.max_grad_norm or torch.inf, norm)
        finite, value = torch.stack([(norm + loss).isfinite().to(norm.dtype), norm]).tolist()
        if not finite:
            return UpdateResult(True, value, rate)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.updates += 1
        self.policy.update_averages(self.updates)
        return UpdateResult(False, value, rate)

    def sound(self) -> bool:
        """Whether weights, moving averages and moments are numbers to go on with (`Policy.sound`), in this process."""
        states = (value for state in self.adamw.state.values() for value in state.values())
        return self.policy.sound(
            value for value in states if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        )

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments as `name/key` tensors; a parameter that was never updated has none."""
        names = {id(p): name for name, p in self.policy.parameters.items()}
        moments = {
            f"{names[id(p)]}/{key}": (names[id(p)], value)
            for p, s in self.adamw.state.items()
            for key, value in state_of(s).items()
        }
        return self.policy.whole(moments)

    def load_state(self, state: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned, from its names and tensors."""
        self.updates = updates
        self.adamw.state.clear()
        for key, tensor in state:
            name, _, moment = key.rpartition("/")
            restore(self.adamw, self.policy.parameters[name], moment, self.policy.share(name, tensor))
