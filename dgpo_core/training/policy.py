"""One set of weights seen in several ways: base, policy, fast EMA (old) and EMA."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import bucket
from dgpo_core.flow.velocity import guided_velocity
from dgpo_core.plugins import contract_checks
from dgpo_core.types import Conditioning, Prompt, same_places

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.passes import Pass
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["ConditioningCache", "ModelName", "Policy", "check_adapter"]

ModelName = Literal["base", "policy", "ema_fast", "ema"]
STORED: tuple[ModelName, ...] = ("policy", "ema_fast", "ema")
LARGEST = 1e18
"""Size up to which a weight can be squared in float32, and cast to bfloat16."""


def check_adapter(backbone: Backbone) -> None:
    """Raise UserError for a backbone that trains something else than its section says."""
    train, use = backbone.section.train, backbone.section.use
    if train == "lora" and backbone.adapter is None:
        raise UserError(f"backbone.train: lora: the backbone {use} has no adapter; write `train: full` (every weight)")
    if train == "full" and backbone.adapter is not None:
        raise UserError(f"backbone.train: full: the backbone {use} has an adapter all the same; write `train: lora`")


class Policy:
    """A backbone whose trained weights can be looked at as several models.

    Each view owns its tensors on the device; switching points the parameters at them, so nothing is copied. The
    base of an adapter is the model with the adapter off; the base of full fine-tuning is a frozen copy.
    Switch views only outside of a forward-backward pair: backward reads the weights that are in place.
    """

    sharded = False
    """Whether the network is sharded across ranks, which then run every forward pass together (`ShardedPolicy`)."""
    weights_sharded = False
    """Whether the trained weights are sharded too; all ranks must then call `state` together."""

    def __init__(self, backbone: Backbone, objective: ObjectiveSection) -> None:
        self.backbone = backbone
        self._network = contract_checks.Checked(backbone)
        self.objective = objective
        self._adapter = backbone.adapter
        self.parameters = dict(backbone.trainable())
        live = [self._local(p.data) for p in self.parameters.values()]
        self._weights: dict[str, list[Tensor]] = {
            "policy": live,
            "ema_fast": [t.clone() for t in live],
            "ema": [t.clone() for t in live],
        }
        if self._adapter is None:
            self._weights["base"] = [t.clone() for t in live]
        self._start = self._weights.get("base") or [t.clone() for t in live]  # also of a resumed run: built, not loaded
        self._active: ModelName = "policy"
        self._updates = 0  # that the averages have seen

    def available(self, model: ModelName) -> ModelName:
        """The view that stands for `view` now: `policy` for a EMA that has not moved yet, which is still the start
        of training, though the policy has learned; every other view stands for itself."""
        return "policy" if model == "ema" and self._updates < self.objective.ema.first_move else model

    @contextmanager
    def activate(self, name: ModelName, *, merged: bool = False) -> Iterator[None]:
        """Run the backbone with the weights of another view, or of what stands for it (`available`), the adapter merged
        into them if asked for. Views are not nested."""
        name = self.available(name)
        if merged and name != "base" and self._adapter is not None:
            merging = self._adapter.merged()
            made = (
                nullcontext() if merging is None else contract_checks.entered(self.backbone, merging, "adapter.merged")
            )
            with self.activate(name), made:
                yield
            return
        if name == "policy":
            assert self._active == "policy"
            yield
            return
        assert self._active == "policy", f"view {name} inside of view {self._active}"
        self._active = name
        try:
            if name in self._weights:
                self._point_at(name)
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
        """Afterwards the weights of every view are bit for bit as before, also after an error, and without a gradient.
        What is put back is kept in the host's memory."""
        before = {model: [t.detach().to("cpu", copy=True) for t in found] for model, found in self._weights.items()}
        updates = self._updates
        try:
            yield
        finally:
            with torch.no_grad():
                for model, found in self._weights.items():
                    for tensor, kept in zip(found, before[model], strict=True):
                        tensor.copy_(kept)
            self._updates = updates
            self.forget_gradient()

    def forget_gradient(self) -> None:
        """Leave no gradient at the parameters."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def agree(self, passes: Callable[[], Sequence[Pass]]) -> None:
        """Begin a phase, in which this process makes these passes of the network until `finish` ends it: by all
        processes together if the network is sharded, else there is nothing to agree on."""

    def finish(self) -> None:
        """Make what is left of the phase, if there is one, without samples of one's own."""

    def _local(self, tensor: Tensor) -> Tensor:
        """What this process has of a tensor that is made like a parameter."""
        return tensor

    def _passing(self) -> AbstractContextManager[None]:
        """Entered around each pass of the network."""
        return nullcontext()

    def _point_at(self, name: ModelName) -> None:
        for parameter, tensor in zip(self.parameters.values(), self._weights[name], strict=True):
            parameter.data = tensor

    def velocity(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Velocity [B, ...] of the view in place; if the scale is not 1 the model's `guide` of two, in one batch."""
        with self._passing():
            return guided_velocity(self._network, x_sigma, sigma, conditioning, unconditional, guidance)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss [] to the trained weights'."""
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update_averages(self, update: int) -> None:
        """Move the averages after optimizer update number `update` (from 1), as `EmaSection` says."""
        self._updates = update
        policy, fast, slow = self._weights["policy"], self.objective.ema_fast, self.objective.ema
        torch._foreach_lerp_(self._weights["ema_fast"], policy, 1 - min(fast.max_decay, fast.ramp * (update - 1)))
        if (update + 1) % slow.every == 0:
            decay = min((1 + update) / (10 + update), slow.decay)
            torch._foreach_lerp_(self._weights["ema"], policy, 1 - decay**slow.repeats)

    @torch.no_grad()
    def change_norm(self) -> float:
        """Euclidean distance of the trained weights from where training begins: 0 for an adapter as it was made, and
        for the base of full fine-tuning."""
        return float(self.norm(list(torch._foreach_sub(self._weights["policy"], self._start))))

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Euclidean norm [] of tensors that are made like the parameters."""
        found: Tensor = torch.stack(list(torch._foreach_norm(tensors))).norm()
        return found

    @torch.no_grad()
    def sound(self, moments: Iterable[Tensor] = ()) -> bool:
        """Whether every stored view is of finite numbers, none larger than LARGEST, and moments made like parameters
        are finite. One transfer from the device; of sharded weights this process's shares."""
        weights = [t for model in STORED for t in self._weights[model]]
        limits = [(weights, LARGEST), ([self._local(t) for t in moments], torch.finfo(torch.float32).max)]
        # A comparison with nan is false, and the maximum norm passes nan on.
        found = [
            (torch.stack([norm.float() for norm in torch._foreach_norm(full, torch.inf)]) <= limit).all()
            for tensors, limit in limits
            if (full := [t for t in tensors if t.numel()])
        ]
        return bool(torch.stack(found).all()) if found else True

    def state(self) -> dict[str, Tensor]:
        """All stored views as whole `view/name` tensors, not copied where that can be."""
        return self.whole(self._stored())

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that `load_state` wants."""
        return {key: tuple(self.parameters[name].shape) for key, (name, _) in self._stored().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Copy what `state` returned after so many optimizer updates into place. The caller has compared names and
        shapes with `expected`."""
        self._updates = updates
        stored = self._stored()
        for key, tensor in state.items() if isinstance(state, Mapping) else state:
            name, place = stored[key]
            place.copy_(self._local(self.share(name, tensor)))

    def _stored(self) -> dict[str, tuple[str, Tensor]]:
        """What this process has of the stored views, by `view/name`, with the parameter's name."""
        return {
            f"{model}/{name}": (name, tensor)
            for model in STORED
            for name, tensor in zip(self.parameters, self._weights[model], strict=True)
        }

    def whole(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors made like parameters, given with these parameters' names, with all processes' shares of them."""
        return {key: tensor for key, (_, tensor) in tensors.items()}

    def share(self, name: str, tensor: Tensor) -> Tensor:
        """This process's share, on its device, of a whole tensor that is made like the parameter `name`."""
        return tensor.to(self.parameters[name].device)


class ConditioningCache:
    """Prompt embeddings, encoded once per prompt and kept on the device up to a number of bytes.

    Each prompt is encoded by itself: in a batch its last bits would depend on the batch's size, that is on what else
    was missing from the cache, and a resumed run, whose cache is empty, would part from the run it continues.
    """

    def __init__(self, backbone: Backbone, *, limit_bytes: int = 2 << 30) -> None:
        self._backbone = backbone
        self._limit = limit_bytes
        self._bytes = 0
        self._rows: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._first: dict[Hashable, Conditioning] = {}
        """Of each bucket a row without values, which every other one has to fit."""

    def __call__(self, prompts: Sequence[Prompt]) -> Conditioning:
        """One row per prompt of one bucket, in order. Every prompt has a size."""
        return Conditioning.cat(self.rows(prompts))

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """What guidance leads away from, one row per prompt of one bucket, in order."""
        return Conditioning.cat(self.unconditional_rows(prompts))

    def rows(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """The same of prompts of any buckets, whose rows need not have one shape and are not joined."""
        return self._found(prompts, lambda p: ("prompt", p.key), self._backbone.encode, "encode")

    def unconditional_rows(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """What guidance leads away from, likewise."""
        # Not by the text that it may stand for: an unconditional "" is another thing than a prompt "" to some models.
        return self._found(
            prompts, lambda p: ("negative", p.negative, p.key[1:]), self._backbone.unconditional, "unconditional"
        )

    def _found(
        self,
        prompts: Sequence[Prompt],
        key: Callable[[Prompt], Hashable],
        encode: Callable[[list[Prompt]], Conditioning],
        what: str,
    ) -> list[Conditioning]:
        keys = [key(prompt) for prompt in prompts]
        wanted = dict(zip(keys, prompts, strict=True))
        found = {k: self._rows[k] for k in wanted if k in self._rows}
        absent = [k for k in wanted if k not in found]
        with (
            contract_checks.entered(self._backbone, self._backbone.encoding(), "encoding") if absent else nullcontext()
        ):
            for k in absent:
                row = encode([wanted[k]])
                self._check(row, wanted[k], what)
                found[k] = self._rows[k] = row
                self._bytes += _bytes(row)
        for k in wanted:
            if k in self._rows:
                self._rows.move_to_end(k)
        while self._bytes > self._limit and len(self._rows) > 1:
            self._bytes -= _bytes(self._rows.popitem(last=False)[1])
        return [found[k] for k in keys]

    def _check(self, row: Conditioning, prompt: Prompt, what: str) -> None:
        contract_checks.conditioning(self._backbone, row, what)
        first = self._first.setdefault(bucket(self._backbone, prompt), row.to(torch.device("meta")))
        if (difference := same_places(first, row)) is not None:
            raise contract_checks.broken(self._backbone, f"`{what}`: {difference}")


def _bytes(row: Conditioning) -> int:
    return sum(t.numel() * t.element_size() for t in row.tensors.values())
