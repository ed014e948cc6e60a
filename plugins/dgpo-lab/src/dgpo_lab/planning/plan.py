"""A run's plan: operations and peak memory of each phase, from the model's meta model and an iteration on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.flow.times import Times
from dgpo_core.plugins.sections import check_section
from dgpo_core.training.policy import check_adapter
from dgpo_lab.planning.iteration import Iteration, Laps
from dgpo_lab.planning.meter import Meter

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig

__all__ = ["Model", "Plan", "make_plan", "measure_model"]

CONTEXT = 0.6 * 2**30
"""Bytes that a CUDA context and its libraries hold besides tensors; about so much on current drivers."""
EIGHT_BITS = (1 + 4 / 256) / 4
"""Of float32 moments: a byte a number and a float32 scale for each block of 256."""
OnMessage = Callable[[str], None]
"""Hears what is being done."""


@dataclass(frozen=True)
class Held:
    """Bytes that a model holds, whatever the numbers of a run.

    held: by name; spread: names that `run.shard` divides by the processes; gathered: of weights that are then whole at
    a time; offloaded_modules: what comes to encode.
    """

    held: Mapping[str, int]
    sharded: frozenset[str]
    gathered: int
    offloaded_modules: int


@dataclass(frozen=True)
class Model(Held):
    """A model without values, and what its passes took; shift: of the rollouts' times, and whose it is."""

    backbone: Backbone
    meter: Meter
    shift: str
    laps: Laps = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Of an iteration on one of `processes` devices. held and peaks in bytes; operations by phase, of all samples;
    shift of the rollouts' times in words."""

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
        """By phase, if each reaches its fraction of so many 10^12 operations a second on every device."""
        return {
            phase: count / (tflops * 1e12 * fractions.get(phase, fractions["rollout"]) * self.processes)
            for phase, count in self.operations.items()
        }


def measure_model(config: RunConfig, registry: Registry, on_message: OnMessage = lambda text: None) -> Model:
    """The model of a run without values. Raises UserError for a backbone that cannot be sketched."""
    use = config.backbone.use
    on_message(f"reading what {config.backbone.checkpoint} looks like")
    registered = registry.find("backbone", use)
    options = registry.options_model(registered).model_validate(config.backbone.options)
    kind: type[Backbone] = registry.implementation(registered)
    check_section(kind, config.backbone)
    try:
        backbone = kind.meta_model(config.backbone, options)
    except NotImplementedError as error:
        raise UserError(f"backbone.use: {use} cannot be planned: {error}") from error
    check_adapter(backbone)
    times = Times(config, backbone)
    times.check_range()
    modules = [*backbone.components().values(), *backbone.offloaded_modules().values()]
    offloaded_modules = sum(_bytes(p) for module in backbone.offloaded_modules().values() for p in module.parameters())
    held = _held(backbone, config)
    meter = Meter(f"backbone.use: {use} cannot be planned", *modules)
    backbone.device = torch.device("cpu")
    return Model(held, _evenly_spaced(backbone), _gathered(backbone), offloaded_modules, backbone, meter, times.shown)


def make_plan(
    config: RunConfig, model: Model, registry: Registry, processes: int = 1, on_message: OnMessage = lambda text: None
) -> Plan:
    """The plan of a run whose model has been measured with the same backbone and precision."""
    evaluation = config.evaluation
    made = Iteration(
        config, model.backbone, registry, model.meter, model.laps, processes=processes, on_message=on_message
    )
    share = config.rollout.groups * config.rollout.group_size / made.samples
    held, above = on_each(model, processes, config.run.shard)
    base = sum(held.values()) + CONTEXT
    peaks = {phase: base + size + above.get(phase, 0) for phase, size in made.peaks.items()}
    if model.offloaded_modules:
        peaks = {"encode": base + model.offloaded_modules} | peaks
    samples = min(evaluation.prompts, 10**9) * evaluation.samples_per_prompt
    return Plan(
        processes=processes,
        held=held,
        peaks=peaks,
        operations={
            "rollout": (made.operations["rollout"] + made.operations["decode"]) * share,
            "optimize": made.operations["optimize"] * share,
        },
        evaluation=made.evaluated * samples / evaluation.every if evaluation.every and config.prompts.heldout else 0.0,
        shift=model.shift,
    )


def on_each(model: Held, processes: int, shard: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that each of the processes holds, by name, and what comes on top for a phase."""
    held = dict(model.held)
    sharded = shard and processes > 1
    weights = "trained weights" in model.sharded
    if sharded:
        if weights:  # the policy's, while another view is in its place
            held["their averages and start"] += held["trained weights"]
        held = {name: -(-size // processes) if name in model.sharded else size for name, size in held.items()}
        held["a block's weights"] = model.gathered
    # Gradients are laid out flat for their sum.
    summed = 2 * held["trained weights"] if processes > 1 and not (sharded and weights) else 0
    return held, {"optimize": summed}


def _held(backbone: Backbone, config: RunConfig) -> dict[str, int]:
    """Bytes that stay on the device, by what they are."""
    trained = sum(_bytes(p) for p in backbone.trainable().values())
    own = {id(p) for p in backbone.trainable().values()}
    held = {}
    for name, module in backbone.components().items():
        frozen = [p for p in module.parameters() if id(p) not in own]
        held[name] = sum(map(_bytes, (*frozen, *module.buffers())))
    kept = 3  # fast and EMA, and the start, which is the base of full fine-tuning
    return held | {
        "trained weights": trained,
        "their averages and start": kept * trained,
        "gradients": trained,
        "AdamW": 2 * trained if config.optimizer.bits == 32 else round(2 * trained * EIGHT_BITS),
    }


def _evenly_spaced(backbone: Backbone) -> frozenset[str]:
    """What `sharding.shard` divides: the network, and all that is made like its weights if these are trained."""
    network = {name for name, component in backbone.components().items() if component is backbone.module}
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
