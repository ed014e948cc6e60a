"""The policy: one network with several sets of weights: base, policy, fast EMA (the old policy), EMA, start, reset."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dgpo_core.flow.sizes import bucket
from dgpo_core.plugins import contract_checks
from dgpo_core.training.compiling import FixedRows
from dgpo_core.types import Conditioning, Prompt, same_places

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.passes import Pass
    from dgpo_core.training.stored_rows import StoredRows
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["ConditioningCache", "ModelName", "Policy", "negative_key", "prompt_key"]

ModelName = Literal["base", "policy", "ema_fast", "ema", "start", "reset"]
STORED: tuple[ModelName, ...] = ("policy", "ema_fast", "ema")
LARGEST = 1e18
"""Largest weight whose square is finite in float32 and bfloat16."""


class Policy:
    """A backbone with several sets of trained weights, one of which is active.

    Each model has its own tensors on the device; activating a model points the parameters at them, without a copy. With
    an adapter, the base model is the network with the adapter disabled; in full fine-tuning it is a frozen copy. The
    model `start` has the initial weights of a run that started from those of an adapter or of another run, and `reset`
    those of the policy when the reference was last reset, at first the initial ones.
    Do not activate another model between a forward pass and its backward pass, which reads the active weights.
    """

    sharded = False
    """Whether the network is sharded across ranks, which then run every forward pass together (`ShardedPolicy`)."""
    weights_sharded = False
    """Whether the trained weights are sharded too; all ranks must then call `state` together."""

    def __init__(self, backbone: Backbone, objective: ObjectiveSection, *, keep_start: bool = False) -> None:
        """keep_start: keep the initial weights as the model `start`, also in `state`."""
        self.backbone = backbone
        self._network = contract_checks.Checked(backbone)
        self.objective = objective
        self._adapter = backbone.adapter
        self.rows = FixedRows(compiled=backbone.section.compile)
        self.parameters = dict(backbone.trainable())
        live = [self._local(p.data) for p in self.parameters.values()]
        self._weights: dict[str, list[Tensor]] = {
            "policy": live,
            "ema_fast": [t.clone() for t in live],
            "ema": [t.clone() for t in live],
        }
        if self._adapter is None:
            self._weights["base"] = [t.clone() for t in live]
        keep_start = keep_start or objective.reference == "start"
        resets = objective.reference == "reset"
        more: dict[ModelName, bool] = {"start": keep_start, "reset": resets}
        self._stored_models = (*STORED, *(model for model, kept in more.items() if kept))
        own = None if keep_start else self._weights.get("base")
        self._start = own or [t.clone() for t in live]  # before a checkpoint is loaded
        if keep_start:
            self._weights["start"] = self._start
        if resets:
            self._weights["reset"] = [t.clone() for t in live]
        self._active: ModelName = "policy"
        self._changed = True  # the values of the parameters, since the adapter was told
        self._updates = 0  # of the averages
        self._held = 0  # updates when the iteration began, after which the fast EMA moves with `per: iteration`

    def available(self, model: ModelName) -> ModelName:
        """Return the model that is used for `model` now: `policy` for an EMA that was not updated yet and still has the
        initial weights, otherwise `model` itself."""
        return "policy" if model == "ema" and self._updates < self.objective.ema.first_move else model

    @property
    def fast_is_policy(self) -> bool:
        """Whether the fast EMA has the policy's weights, so that one prediction serves as both.

        By construction, from the number of updates: all models start with the same weights, and an update of the
        averages with a decay of 0, as is the first one, makes the fast EMA the policy. With `per: iteration`, until the
        next update, and only if every decay is 0: a resumed run does not know that of the last move.
        """
        fast = self.objective.ema_fast
        if fast.per == "iteration":
            return self._updates == self._held and (self._held == 0 or min(fast.max_decay, fast.ramp) == 0)
        return self._fast_decay(self._updates) == 0

    def _fast_decay(self, update: int) -> float:
        """Return the decay of the fast EMA at optimizer update `update` (from 1); 0 before the first one."""
        fast = self.objective.ema_fast
        return min(fast.max_decay, fast.ramp * max(update - 1, 0))

    @contextmanager
    def activate(self, model: ModelName, *, merged: bool = False) -> Iterator[None]:
        """Context manager that runs the backbone with the weights of a model, or of its substitute (`available`).

        merged: merge the adapter into the weights, if the adapter supports it. Cannot be nested.
        """
        model = self.available(model)
        if merged and model != "base" and self._adapter is not None:
            merging = self._adapter.merged()
            context = (
                nullcontext() if merging is None else contract_checks.entered(self.backbone, merging, "adapter.merged")
            )
            with self.activate(model), context:
                yield
            return
        if model == "policy":
            assert self._active == "policy"
            yield
            return
        assert self._active == "policy", f"cannot activate model {model} while {self._active} is active"
        self._active = model
        try:
            if model in self._weights:
                self._point_at(model)
                yield
            else:
                assert self._adapter is not None
                with contract_checks.entered(self.backbone, self._adapter.off(), "adapter.off"):
                    yield
        finally:
            self._active = "policy"
            self._point_at("policy")

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Context manager that restores the weights of all models bit-exactly, also after an error, and clears the
        gradients. The copies are kept in host memory."""
        before = {model: [t.detach().to("cpu", copy=True) for t in weights] for model, weights in self._weights.items()}
        updates = self._updates, self._held
        try:
            yield
        finally:
            with torch.no_grad():
                for model, weights in self._weights.items():
                    for tensor, saved in zip(weights, before[model], strict=True):
                        tensor.copy_(saved)
            self._updates, self._held = updates
            self._changed = True
            self.forget_gradient()

    def forget_gradient(self) -> None:
        """Set the parameters' gradients to None."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Context of the steps of one micro-batch of a training rollout; see `Backbone.sampling`."""
        context = self.backbone.sampling()
        with nullcontext() if context is None else contract_checks.entered(self.backbone, context, "sampling"):
            yield

    def agree(self, passes: Callable[[], Sequence[Pass]]) -> None:
        """Begin a phase in which this rank runs the given forward passes, until `finish`.

        If the network is sharded, all ranks must call this together; otherwise it does nothing.
        """

    def finish(self) -> None:
        """End the phase, if any: run the passes that other ranks have left."""

    def _local(self, tensor: Tensor) -> Tensor:
        """Return this rank's shard of a tensor that is laid out like a parameter."""
        return tensor

    def _passing(self) -> AbstractContextManager[None]:
        """Context of each forward pass of the network."""
        return nullcontext()

    def _point_at(self, model: ModelName) -> None:
        self._changed = True
        for parameter, tensor in zip(self.parameters.values(), self._weights[model], strict=True):
            parameter.data = tensor

    def velocity(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Predict the velocity [B, ...] of the active model.

        With a guidance scale other than 1, combine the conditional and unconditional predictions, from one batch, with
        the backbone's `guide`.
        """
        self._tell_adapter()
        with self._passing(), self.rows.failing():
            return self.rows.velocity(self._network, x_sigma, sigma, conditioning, unconditional, guidance)

    def _tell_adapter(self) -> None:
        """Before a pass: tell the adapter that its values have changed since the last one, unless it is disabled."""
        if self._changed and self._adapter is not None and self._active != "base":
            self._adapter.weights_changed()
            self._changed = False

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar loss in the trained weights."""
        with self.rows.failing():
            loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update_averages(self, update: int) -> None:
        """Update the moving averages after optimizer update `update` (from 1); see `EmaSection` for the decays."""
        self._updates = update
        self._changed = True
        policy, slow = self._weights["policy"], self.objective.ema
        if self.objective.ema_fast.per == "update":
            self._move_fast(update)
        if (update + 1) % slow.every == 0:
            decay = min((1 + update) / (10 + update), slow.decay)
            torch._foreach_lerp_(self._weights["ema"], policy, 1 - decay**slow.repeats)

    @torch.no_grad()
    def end_iteration(self) -> None:
        """Move the fast EMA with `per: iteration` after the last update, unless all were skipped; see
        `EmaFastSection`."""
        if self.objective.ema_fast.per == "iteration" and self._updates > self._held:
            self._changed = True
            self._move_fast(self._held + 1)
        self._held = self._updates

    @torch.no_grad()
    def reset_reference(self) -> None:
        """Make the model `reset` the policy."""
        self._changed = True
        torch._foreach_copy_(self._weights["reset"], self._weights["policy"])

    def _move_fast(self, update: int) -> None:
        torch._foreach_lerp_(self._weights["ema_fast"], self._weights["policy"], 1 - self._fast_decay(update))

    @torch.no_grad()
    def change_norm(self) -> float:
        """Return the Euclidean distance of the trained weights from their initial values."""
        return float(self.norm(list(torch._foreach_sub(self._weights["policy"], self._start))))

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the Euclidean norm [] over all elements of tensors that are laid out like parameters."""
        norm: Tensor = torch.stack(list(torch._foreach_norm(tensors))).norm()
        return norm

    @torch.no_grad()
    def is_finite(self, moments: Iterable[Tensor] = ()) -> bool:
        """Return whether the weights of all stored models are finite and at most LARGEST, and `moments` are finite.

        Checks this rank's shards, with one device-to-host transfer.
        """
        weights = [t for model in STORED for t in self._weights[model]]
        limits = [(weights, LARGEST), ([self._local(t) for t in moments], torch.finfo(torch.float32).max)]
        # The maximum norm propagates nan, and comparisons with nan are false.
        checks = [
            (torch.stack([norm.float() for norm in torch._foreach_norm(full, torch.inf)]) <= limit).all()
            for tensors, limit in limits
            if (full := [t for t in tensors if t.numel()])
        ]
        return bool(torch.stack(checks).all()) if checks else True

    def state(self) -> dict[str, Tensor]:
        """Return the weights of all stored models as full `model/name` tensors, without copies if possible."""
        return self.full_tensors(self._stored())

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes that `load_state` requires."""
        return {key: tuple(self.parameters[name].shape) for key, (name, _) in self._stored().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Load the tensors that `state` returned after `updates` optimizer updates.

        The caller must have compared names and shapes with `expected`.
        """
        self._updates = self._held = updates
        self._changed = True
        stored = self._stored()
        for key, tensor in state.items() if isinstance(state, Mapping) else state:
            name, target = stored[key]
            target.copy_(self._local(self.local_shard(name, tensor)))

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Set all models but the base to other initial weights, full tensors by parameter name."""
        self._changed = True
        stored = self._stored()
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            shard = self._local(self.local_shard(name, tensor))
            for model in self._stored_models:
                stored[f"{model}/{name}"][1].copy_(shard)

    def _stored(self) -> dict[str, tuple[str, Tensor]]:
        """This rank's tensors of the stored models: `model/name` -> (parameter name, tensor)."""
        return {
            f"{model}/{name}": (name, tensor)
            for model in self._stored_models
            for name, tensor in zip(self.parameters, self._weights[model], strict=True)
        }

    def full_tensors(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gather the full tensors of local ones, given as key -> (name of a parameter with the same layout, tensor)."""
        return {key: tensor for key, (_, tensor) in tensors.items()}

    def local_shard(self, name: str, tensor: Tensor) -> Tensor:
        """Return this rank's shard, on its device, of a full tensor that is laid out like the parameter `name`."""
        return tensor.to(self.parameters[name].device)


def prompt_key(prompt: Prompt) -> Hashable:
    """Return the key of a prompt's conditioning row; JSON data."""
    return "prompt", prompt.key


def negative_key(prompt: Prompt) -> Hashable:
    """Return the key of a prompt's unconditional row; JSON data.

    Another one than that of the same text as a prompt: some models treat an unconditional "" differently.
    """
    return "negative", prompt.negative, prompt.key[1:]


class ConditioningCache:
    """LRU cache of prompt embeddings on the device, limited to a number of bytes.

    Prompts are encoded one at a time: in a batch, the last bits of an embedding would depend on which other prompts
    were missing from the cache, and a resumed run, whose cache is empty, would not be bit-identical.
    """

    def __init__(self, backbone: Backbone, *, stored: StoredRows | None = None, limit_bytes: int = 2 << 30) -> None:
        """stored: rows on disk, which are used before prompts are encoded."""
        self._backbone = backbone
        self._stored = stored
        self._limit = limit_bytes
        self._bytes = 0
        self._rows: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._first: dict[Hashable, Conditioning] = {}
        """The first row of each bucket, on the meta device; later rows must have the same structure."""

    def __call__(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return the conditioning of prompts of one bucket, one row per prompt. Every prompt must have a size."""
        return Conditioning.cat(self.rows(prompts))

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return the unconditional (negative) conditioning of prompts of one bucket, one row per prompt."""
        return Conditioning.cat(self.unconditional_rows(prompts))

    def rows(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Return the conditioning rows of prompts of any buckets, as a list because shapes may differ."""
        return self._lookup(prompts, prompt_key, self._backbone.encode, "encode")

    def unconditional_rows(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Return the unconditional rows of prompts of any buckets."""
        return self._lookup(prompts, negative_key, self._backbone.unconditional, "unconditional")

    def _lookup(
        self,
        prompts: Sequence[Prompt],
        key: Callable[[Prompt], Hashable],
        encode: Callable[[list[Prompt]], Conditioning],
        method: str,
    ) -> list[Conditioning]:
        keys = [key(prompt) for prompt in prompts]
        requested = dict(zip(keys, prompts, strict=True))
        rows = {k: self._rows[k] for k in requested if k in self._rows}
        for k in requested:
            if k not in rows and self._stored is not None and (row := self._stored.read(k)) is not None:
                self._add(k, row, requested[k], method)
                rows[k] = row
        missing = [k for k in requested if k not in rows]
        with (
            contract_checks.entered(self._backbone, self._backbone.encoding(), "encoding") if missing else nullcontext()
        ):
            for k in missing:
                rows[k] = row = encode([requested[k]])
                self._add(k, row, requested[k], method)
                if self._stored is not None:
                    self._stored.write(k, row)
        for k in requested:
            if k in self._rows:
                self._rows.move_to_end(k)
        while self._bytes > self._limit and len(self._rows) > 1:
            self._bytes -= _bytes(self._rows.popitem(last=False)[1])
        return [rows[k] for k in keys]

    def _add(self, key: Hashable, row: Conditioning, prompt: Prompt, method: str) -> None:
        self._check(row, prompt, method)
        self._rows[key] = row
        self._bytes += _bytes(row)

    def _check(self, row: Conditioning, prompt: Prompt, method: str) -> None:
        contract_checks.conditioning(self._backbone, row, method)
        first = self._first.setdefault(bucket(self._backbone, prompt), row.to(torch.device("meta")))
        if (difference := same_places(first, row)) is not None:
            raise contract_checks.broken(self._backbone, f"`{method}`: {difference}")


def _bytes(row: Conditioning) -> int:
    return sum(t.numel() * t.element_size() for t in row.tensors.values())
