"""A run's plan: operations and peak memory of each verb, from the model's sketch and the run file's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone, Objective
from dgpo_core.errors import UserError
from dgpo_core.flow.times import Times
from dgpo_core.flow.velocity import guided_velocity
from dgpo_core.plugins.sections import check_section
from dgpo_core.training.policy import check_adapter
from dgpo_lab.planning.simulate import Cost, cost, faked, operations

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig

__all__ = ["Model", "Plan", "make_plan", "measure_model"]

CONTEXT = 0.6 * 2**30
"""Bytes that a CUDA context and its libraries hold besides tensors; about so much on current drivers."""
EIGHT_BITS = (1 + 4 / 256) / 4
"""Of float32 moments: a byte a number and a float32 scale for each block of 256."""


@dataclass(frozen=True)
class Model:
    """What a model costs, whatever the numbers of a run.

    held: bytes by name; spread: names that `run.shard` divides by the processes; gathered: bytes of weights that are
    then whole at a time; visitors: bytes that come to encode; costs and operations are of a sample; shift: of the
    rollouts' times, and whose it is.
    """

    held: Mapping[str, int]
    spread: frozenset[str]
    gathered: int
    visitors: int
    latent: int
    draw: Cost
    decode: Cost
    learn: Cost
    reference_operations: float
    evaluate_operations: float
    shift: str = ""


@dataclass(frozen=True)
class Plan:
    """Of an iteration on one of `processes` devices. held and peaks in bytes; operations by verb, of all samples; shift
    of the rollouts' times in words."""

    processes: int
    held: Mapping[str, int]
    peaks: Mapping[str, float]
    operations: Mapping[str, float]
    evaluation: float
    shift: str = ""

    @property
    def peak(self) -> float:
        """Bytes a device must have."""
        return max(self.peaks.values())

    def seconds(self, tflops: float, fractions: Mapping[str, float]) -> dict[str, float]:
        """By verb, if each reaches its fraction of so many 10^12 operations a second on every device."""
        return {
            verb: count / (tflops * 1e12 * fractions.get(verb, fractions["roll out"]) * self.processes)
            for verb, count in self.operations.items()
        }


def measure_model(config: RunConfig, registry: Registry) -> Model:
    """Run the model's steps without values. Raises UserError for a backbone that cannot be sketched."""
    registered = registry.find("backbone", config.backbone.use)
    options = registry.options_model(registered).model_validate(config.backbone.options)
    kind: type[Backbone] = registry.implementation(registered)
    check_section(kind, config.backbone)
    try:
        backbone = kind.sketch(config.backbone, options)
    except NotImplementedError as error:
        raise UserError(f"backbone.use: {config.backbone.use} cannot be planned: {error}") from error
    check_adapter(backbone)
    objective: Objective = registry.create("objective", config.objective)
    times = Times(config, backbone)
    times.check_range()
    held = _held(backbone, config)
    visitors = sum(_bytes(p) for module in backbone.visitors().values() for p in module.parameters())
    shape = backbone.latent_shape(*config.rollout.height_width)
    with faked(*backbone.parts().values()):
        backbone.device = torch.device("cpu")
        steps = _Steps(backbone, objective, config, shape)
        draw = cost(steps.draw, backbone.module)
        guidance = config.evaluation.guidance
        evaluate = draw.operations
        if guidance not in (None, config.rollout.guidance):
            evaluate = operations(lambda: steps.draw(1, guidance), backbone.module)
        return Model(
            held=held,
            spread=_spread(backbone),
            gathered=_gathered(backbone),
            visitors=visitors,
            latent=4 * torch.Size(shape).numel(),
            draw=draw,
            decode=cost(steps.decode, torch.nn.ModuleList(backbone.parts().values())),
            learn=cost(steps.learn, backbone.module),
            reference_operations=operations(lambda: steps.look(1), backbone.module),
            evaluate_operations=evaluate,
            shift=times.shown,
        )


def _chunk(config: RunConfig, drawn: int) -> int:
    """Samples that are decoded at a time, of `drawn` in a micro-batch; all if its backbone has no option for it."""
    chunk = config.backbone.options.get("decode_chunk")
    return min(chunk, drawn) if isinstance(chunk, int) and chunk > 0 else drawn


def make_plan(config: RunConfig, model: Model, registry: Registry, processes: int = 1) -> Plan:
    """The plan of a run whose model has been measured with the same precision and checkpointing."""
    rollout, evaluation = config.rollout, config.evaluation
    objective: Objective = registry.create("objective", config.objective)
    total = rollout.groups * rollout.group_size
    here = -(-total // processes)
    times = config.timesteps.count
    learn = model.learn.operations * total * times
    micro_batch = config.optimiser.micro_batch or rollout.group_size
    if objective.needs_statistic and micro_batch < rollout.group_size:
        learn += model.reference_operations * total * times  # each group is gone through twice
    drawn = min(rollout.micro_batch or total, here)
    chunk = _chunk(config, drawn)
    latents = model.latent * here * (rollout.steps + 2 if objective.needs_path else 1)
    held = dict(model.held)
    sharded = config.run.shard and processes > 1
    if sharded:
        if "trained weights" in model.spread:
            held["their averages and start"] += held[
                "trained weights"
            ]  # the policy's, while another view is in its place
        held = {name: -(-size // processes) if name in model.spread else size for name, size in held.items()}
        held["a block's weights"] = model.gathered
    base = sum(held.values()) + CONTEXT
    summed = 0
    if processes > 1 and not (sharded and "trained weights" in model.spread):
        summed = 2 * held["trained weights"]  # gradients, flat, for their sum
    peaks = {
        "roll out": base + latents + model.draw.bytes(drawn),
        "decode": base + latents + model.decode.bytes(chunk),
        "optimise": base + latents + model.learn.bytes(min(micro_batch, here)) + summed,
    }
    if model.visitors:
        peaks = {"encode": base + model.visitors} | peaks
    samples = min(evaluation.prompts, 10**9) * evaluation.samples_per_prompt
    each = model.evaluate_operations * (evaluation.steps or rollout.steps) + model.decode.operations
    return Plan(
        processes=processes,
        held=held,
        peaks=peaks,
        operations={
            "roll out": model.draw.operations * rollout.steps * total + model.decode.operations * total,
            "optimise": learn,
        },
        evaluation=each * samples / evaluation.every if evaluation.every and config.prompts.heldout else 0.0,
        shift=model.shift,
    )


def _held(backbone: Backbone, config: RunConfig) -> dict[str, int]:
    """Bytes that stay on the device, by what they are."""
    trained = sum(_bytes(p) for p in backbone.trainable().values())
    own = {id(p) for p in backbone.trainable().values()}
    held = {}
    for name, module in backbone.parts().items():
        frozen = [p for p in module.parameters() if id(p) not in own]
        held[name] = sum(map(_bytes, (*frozen, *module.buffers())))
    kept = 3  # fast and slow EMA, and the start, which is the base of full fine-tuning
    return held | {
        "trained weights": trained,
        "their averages and start": kept * trained,
        "gradients": trained,
        "AdamW": 2 * trained if config.optimiser.bits == 32 else round(2 * trained * EIGHT_BITS),
    }


def _spread(backbone: Backbone) -> frozenset[str]:
    """What `sharding.shard` divides: the network, and all that is made like its weights if these are trained."""
    network = {name for name, part in backbone.parts().items() if part is backbone.module}
    of_weights = {"trained weights", "their averages and start", "gradients", "AdamW"}
    return frozenset(network | (of_weights if backbone.adapter is None else set()))


def _gathered(backbone: Backbone) -> int:
    """Bytes of weights that a process has whole while a block runs: that block's, the next one's, which is fetched
    meanwhile, and those outside of blocks; with their gradients if they are trained."""
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    blocks = [sum(_bytes(p) for p in block.parameters() if p not in adapter) for block in backbone.blocks()]
    outside = sum(_bytes(p) for p in backbone.module.parameters() if p not in adapter) - sum(blocks)
    whole = outside + 2 * max(blocks, default=0)
    return whole if adapter else 2 * whole


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Steps:
    """The engine's steps on B samples, with nothing but shapes."""

    def __init__(self, backbone: Backbone, objective: Objective, config: RunConfig, shape: tuple[int, ...]) -> None:
        self.backbone, self.objective, self.config, self.shape = backbone, objective, config, shape

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision.autocast == "bf16")

    def _velocity(self, x: Tensor, guidance: float) -> Tensor:
        prompts = [self.backbone.example(self.config.rollout.height_width)] * len(x)
        rows = self.backbone.encode(prompts)
        free = self.backbone.unconditional(prompts) if guidance != 1.0 else None
        with self._autocast():
            return guided_velocity(self.backbone, x, torch.full((len(x),), 0.5), rows, free, guidance)

    @torch.no_grad()
    def draw(self, count: int, guidance: float | None = None) -> Tensor:
        """One solver step."""
        x = torch.zeros(count, *self.shape)
        return x + 0.1 * self._velocity(x, self.config.rollout.guidance if guidance is None else guidance)

    @torch.no_grad()
    def decode(self, count: int) -> Tensor:
        """Latents to media."""
        return self.backbone.decode(torch.zeros(count, *self.shape))

    @torch.no_grad()
    def look(self, count: int) -> Tensor:
        """The policy's prediction alone, as a group's statistic needs it."""
        return self._velocity(torch.zeros(count, *self.shape), self._guidance)

    @property
    def _guidance(self) -> float:
        return self.config.rollout.guidance if self.objective.needs_path else 1.0

    def learn(self, count: int) -> Any:
        """All predictions of a micro-batch at one time, and the gradient."""
        x, target = torch.zeros(count, *self.shape), torch.zeros(count, *self.shape)
        section = self.config.objective
        others = []
        with torch.no_grad():
            if self.objective.needs_old or (self.objective.needs_reference and section.reference == "ema"):
                others.append(self._velocity(x, self._guidance))
            if self.objective.needs_base or (self.objective.needs_reference and section.reference != "ema"):
                with self.backbone.adapter.off() if self.backbone.adapter else nullcontext():
                    others.append(self._velocity(x, max(self._guidance, section.kl_cfg)))
        velocity = self._velocity(x, self._guidance)
        loss = (velocity - target).square().flatten(1).mean(1).sum()
        for other in others:
            loss = loss + (velocity - other).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
