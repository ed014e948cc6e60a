"""The plan of a run: FLOPs and peak memory of each phase, from an iteration on the backbone's meta model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dgpo_core.contracts import Backbone
from dgpo_core.distributed.sharding import gather_dtype
from dgpo_core.errors import UserError
from dgpo_core.flow.times import Times
from dgpo_core.lora import LoraAdapter
from dgpo_core.lora.files import open_adapter
from dgpo_core.plugins.sections import check_section
from dgpo_core.training.checks import check_adapter, check_conflicts, check_guidance, check_merging, check_sharded
from dgpo_core.training.precision import described, speed_up
from dgpo_core.training.starting import check_start
from dgpo_lab.planning.exchanges import balance_of, exchanges_of, shards_of
from dgpo_lab.planning.iteration import Iteration, Laps
from dgpo_lab.planning.meter import Meter
from dgpo_lab.planning.shapes import CUDA

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_lab.planning.communication import Exchange
    from dgpo_schemas.run import RunConfig

__all__ = ["Model", "Plan", "make_plan", "measure_model"]

CONTEXT = 0.6 * 2**30
"""Approximate bytes that a CUDA context and its libraries hold besides tensors, on current drivers."""
EIGHT_BITS = (1 + 4 / 256) / 4
"""Size of 8-bit moments relative to float32: one byte per number, and a float32 scale per block of 256."""
OnMessage = Callable[[str], None]
"""Receives progress messages."""


@dataclass(frozen=True)
class Held:
    """Bytes that a model holds permanently, independent of batch sizes.

    held: bytes by name; sharded: names that `run.shard` divides by the number of ranks; gathered: bytes of the weights
    that are gathered at a time with `run.shard`; encoding: additional bytes while prompts are encoded.
    """

    held: Mapping[str, int]
    sharded: frozenset[str]
    gathered: int
    encoding: int


@dataclass(frozen=True)
class Model(Held):
    """A meta model and the cost of its passes; offloaded_modules: bytes of all their weights; shift: a description of
    the shift of the rollouts' noise schedule; precision: the choices of `precision.adapter` and `precision.norms`."""

    backbone: Backbone
    meter: Meter
    offloaded_modules: int
    shift: str
    precision: str
    laps: Laps = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The cost of an iteration on `processes` devices of `machines` machines.

    held, peaks: bytes per device; operations: FLOPs by phase over all samples; evaluation: FLOPs of evaluations per
    iteration; shift, precision: see `Model`; exchanges: what processes
    exchange; balance: mean number of samples of a process over the largest one.
    """

    processes: int
    held: Mapping[str, int]
    peaks: Mapping[str, float]
    operations: Mapping[str, float]
    evaluation: float
    shift: str = ""
    precision: str = ""
    machines: int = 1
    exchanges: Sequence[Exchange] = ()
    balance: float = 1.0

    @property
    def peak(self) -> float:
        """Peak bytes of a device."""
        return max(self.peaks.values())

    def seconds(self, tflops: float, fractions: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds by phase if each phase reaches its fraction of `tflops` (TFLOP/s) on every device."""
        return {
            phase: count / (tflops * 1e12 * fractions.get(phase, fractions["rollout"]) * self.processes)
            for phase, count in self.operations.items()
        }


def measure_model(
    config: RunConfig,
    registry: Registry,
    on_message: OnMessage = lambda text: None,
    *,
    device: torch.device = CUDA,
) -> Model:
    """Build the meta model of a run on a device, which need not be there: CUDA, or the CPU.

    Raises UserError if the backbone has no meta model.
    """
    use = config.backbone.use
    check_conflicts(config, registry)  # of a configuration that was not read from a file
    on_message(f"reading the architecture of {config.backbone.checkpoint}")
    registered = registry.find("backbone", use)
    options = registry.options_model(registered).model_validate(config.backbone.options)
    kind: type[Backbone] = registry.implementation(registered)
    check_section(kind, config.backbone)
    try:
        backbone = kind.meta_model(config.backbone, options)
    except NotImplementedError as error:
        raise UserError(f"backbone.use: {use} cannot be planned: {error}") from error
    check_adapter(backbone)
    check_merging(config, backbone)
    fast = speed_up(backbone, config, device.type)
    check_start(config, here=False)
    init = config.backbone.lora.init
    if isinstance(backbone.adapter, LoraAdapter) and init is not None and Path(init).exists():
        backbone.adapter.check(open_adapter(Path(init)))
    check_guidance(backbone, "rollout.guidance", config.rollout.guidance)
    if config.evaluation.guidance is not None:
        check_guidance(backbone, "evaluation.guidance", config.evaluation.guidance)
    check_guidance(backbone, "objective.kl_cfg", config.objective.kl_cfg)
    times = Times(config, backbone)
    times.check_range()
    modules = [*backbone.components().values(), *backbone.offloaded_modules().values()]
    offloaded_modules = sum(
        backbone.weight_bytes(p) for module in backbone.offloaded_modules().values() for p in module.parameters()
    )
    staying, encoding = backbone.offloaded_bytes()
    held = _held(backbone, config) | {"offloaded modules": staying}
    meter = Meter(f"backbone.use: {use} cannot be planned", *modules, device=device)
    backbone.device = device
    bf16 = config.precision.autocast == "bf16"
    return Model(
        held,
        _sharded(backbone),
        _gathered(backbone, gather_dtype(backbone, bf16=bf16)),
        encoding,
        backbone,
        meter,
        offloaded_modules,
        times.shown,
        described(fast),
    )


def make_plan(
    config: RunConfig,
    model: Model,
    registry: Registry,
    processes: int = 1,
    on_message: OnMessage = lambda text: None,
    machines: int = 1,
) -> Plan:
    """Plan a run with a model that was measured for the same backbone and precision."""
    evaluation = config.evaluation
    if config.run.shard and processes > 1:
        check_sharded(config)
    made = Iteration(
        config, model.backbone, registry, model.meter, model.laps, processes=processes, on_message=on_message
    )
    share = config.rollout.groups * config.rollout.group_size / made.samples
    held, above = on_each(model, processes, shards_of(config, processes, machines))
    base = sum(held.values()) + CONTEXT
    peaks = {phase: base + size + above.get(phase, 0) for phase, size in made.peaks.items()}
    if model.encoding:
        peaks = {"encode": base + model.encoding} | peaks
    samples = min(evaluation.prompts, 10**9) * evaluation.samples_per_prompt
    return Plan(
        processes=processes,
        held=held,
        peaks=peaks,
        operations={
            "rollout": made.drawn,
            "optimize": made.operations["optimize"] * share,
        },
        evaluation=made.evaluated * samples / evaluation.every if evaluation.every and config.prompts.heldout else 0.0,
        shift=model.shift,
        precision=model.precision,
        machines=machines,
        exchanges=exchanges_of(
            config, model.backbone, registry.create("objective", config.objective), made.passes, processes, machines
        ),
        balance=balance_of(config, processes),
    )


def on_each(model: Held, processes: int, shards: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes that each rank holds, by name, and the additional bytes by phase; shards: the number of ranks
    over which weights are sharded, or 1."""
    held = dict(model.held)
    sharded = shards > 1
    weights = "trained weights" in model.sharded
    if sharded:
        if weights:  # the policy's weights are kept separately while another model is active
            held["EMA and initial weights"] += held["trained weights"]
        held = {name: -(-size // shards) if name in model.sharded else size for name, size in held.items()}
        held["gathered block weights"] = model.gathered
    # The all-reduce copies the gradients into a flat buffer.
    summed = 2 * held["trained weights"] if processes > 1 and not (sharded and weights) else 0
    return held, {"optimize": summed}


def _held(backbone: Backbone, config: RunConfig) -> dict[str, int]:
    """Return the bytes that stay on the device, by name."""
    trained = sum(_bytes(p) for p in backbone.trainable().values())
    trainable = {id(p) for p in backbone.trainable().values()}
    held = {}
    for name, module in backbone.components().items():
        frozen = [p for p in module.parameters() if id(p) not in trainable]
        held[name] = sum(map(backbone.weight_bytes, frozen)) + sum(map(_bytes, module.buffers()))
    # ema_fast, ema, and the initial weights, which are usually also the base model of full fine-tuning
    kept = 4 if backbone.adapter is None and config.starts_elsewhere else 3
    kept += config.objective.reference == "reset"
    return held | {
        "trained weights": trained,
        "EMA and initial weights": kept * trained,
        "gradients": trained,
        "AdamW state": 2 * trained if config.optimizer.bits == 32 else round(2 * trained * EIGHT_BITS),
    }


def _sharded(backbone: Backbone) -> frozenset[str]:
    """Return the names that `sharding.shard` divides: the network, and with full fine-tuning all trained state."""
    network = {name for name, component in backbone.components().items() if component is backbone.module}
    of_weights = {"trained weights", "EMA and initial weights", "gradients", "AdamW state"}
    return frozenset(network | (of_weights if backbone.adapter is None else set()))


def _gathered(backbone: Backbone, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of weights that a rank gathers while a block runs, in `dtype` or their own.

    These are the weights of the block, of the prefetched next block, and outside of blocks; with full fine-tuning also
    their gradients, and if these are not float32 a float32 copy of a block's, which is reduced.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())

    def size(module: nn.Module) -> int:
        return sum(p.numel() * (dtype or p.dtype).itemsize for p in module.parameters() if p not in adapter)

    blocks = [size(block) for block in backbone.blocks()]
    outside, largest = size(backbone.module) - sum(blocks), max(blocks, default=0)
    gathered = outside + 2 * largest
    if adapter:
        return gathered
    return 2 * gathered + (0 if dtype is None else largest * torch.float32.itemsize // dtype.itemsize)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
