"""The roofline of a run: what its passes launch, and how long an ideal GPU takes for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.training.batch_sizes import drawn_at_once, trained_at_once
from dgpo_lab.planning.iteration import Iteration
from dgpo_lab.planning.kernels import Kernel
from dgpo_lab.planning.plan import CONTEXT, measure_model, on_each
from dgpo_lab.planning.shapes import CUDA

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_lab.planning.cards import Card
    from dgpo_lab.planning.meter import Counted
    from dgpo_schemas.run import RunConfig

__all__ = ["Pass", "Roofline", "measure_roofline"]


@dataclass(frozen=True)
class Pass:
    """A part of an iteration.

    samples: the samples that it is for; count: how often it runs in `counted`, of which it is the mean.
    """

    name: str
    samples: int
    counted: Counted
    count: float = 1.0

    def seconds(self, card: Card) -> float:
        """Return the ideal time on a GPU."""
        return sum(card.seconds(kernel) * n for kernel, n in self.counted.kernels.items()) / self.count

    def busy(self, card: Card) -> float:
        """Return the part of the ideal time that matrix products, attention and convolutions take."""
        kernels = self.counted.kernels.items()
        return sum(card.seconds(kernel) * n for kernel, n in kernels if kernel.operations) / self.count

    def share(self, card: Card) -> float:
        """Return the operations of the kernels in the ideal time, over the sustained matrix products of the GPU."""
        seconds = self.seconds(card)
        return self.operations / seconds / card.ceiling if seconds else 0.0

    @property
    def kernels(self) -> float:
        """The number of launches."""
        return self.counted.launches / self.count

    @property
    def bytes(self) -> float:
        """Bytes that the kernels read and write."""
        return sum(kernel.bytes * n for kernel, n in self.counted.kernels.items()) / self.count

    @property
    def operations(self) -> float:
        """Operations that the kernels execute."""
        return sum(kernel.operations * n for kernel, n in self.counted.kernels.items()) / self.count

    @property
    def dispatches(self) -> float:
        """Operators that the host calls."""
        return self.counted.dispatches / self.count

    @property
    def blocking(self) -> float:
        """Copies between host and device that the host waits for."""
        return self.counted.blocking.total() / self.count

    def longest(self, card: Card, count: int) -> list[tuple[str, float, float, float]]:
        """Return the operators that take longest: (name with kind and precision, launches, seconds, bytes)."""
        found: dict[str, tuple[float, float, float]] = {}
        for kernel, n in self.counted.kernels.items():
            launches, seconds, size = found.get(_label(kernel), (0.0, 0.0, 0.0))
            times = n / self.count
            found[_label(kernel)] = (
                launches + times, seconds + times * card.seconds(kernel), size + times * kernel.bytes,
            )  # fmt: skip
        rows = [(name, *row) for name, row in found.items()]
        return sorted(rows, key=lambda row: -row[2])[:count]

    def places(self) -> Counter[str]:
        """Count the blocking copies by place."""
        return Counter({
            f"{copy.place}: {copy.name} {copy.direction}": n for copy, n in self.counted.blocking.items()
        })  # fmt: skip

    def data(self, card: Card, longest: int = 0) -> dict[str, Any]:
        """Return the row as JSON data."""
        return {
            "pass": self.name, "samples": self.samples, "kernels": self.kernels, "bytes": self.bytes,
            "operations": self.operations, "ideal_ms": self.seconds(card) * 1e3, "busy_ms": self.busy(card) * 1e3,
            "dispatches": self.dispatches, "blocking": self.blocking, "share": self.share(card),
            "places": dict(self.places()),
            "longest": [
                {"operator": name, "kernels": n, "ms": seconds * 1e3, "bytes": size}
                for name, n, seconds, size in self.longest(card, longest)
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Roofline:
    """The passes of a run, and its peak bytes by phase, as `dgpo plan` states them."""

    passes: list[Pass]
    peaks: Mapping[str, float]


def _label(kernel: Kernel) -> str:
    return kernel.name if kernel.kind == "elementwise" else f"{kernel.name}, {kernel.precision}"


def measure_roofline(config: RunConfig, registry: Registry) -> Roofline:
    """Count the passes of one group of a run, in micro-batches of the run's sizes."""
    group = config.rollout.group_size
    one = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"groups": 1, "explore": None}),
            "optimizer": config.optimizer.model_copy(update={"updates": 1, "passes": 1}),
        }
    )
    with _kernels_of(config):
        model = measure_model(one, registry)
        made = Iteration(one, model.backbone, registry, model.meter, model.laps)
    drawn, learned = min(drawn_at_once(one, CUDA), group), min(trained_at_once(one, CUDA), group)
    draws, learns = -(-group // drawn), -(-group // learned)
    laps = {key: lap for key, (lap, *_) in model.laps.items()}
    passes = [Pass("roll-out step", drawn, made.phases["rollout"], draws * one.rollout.steps),
              Pass("decode", drawn, made.phases["decode"], draws)]  # fmt: skip
    for key, lap in laps.items():
        if key[0] == "pass" and key[1]:
            passes += [Pass("policy pass with gradient", learned, lap), Pass("its backward", learned,
                                                                             laps["backward", key])]  # fmt: skip
            break
    passes += [
        Pass("training micro-batch, all passes", learned, made.phases["optimize"], learns * one.timesteps.count),
        Pass("update of the weights", group, made.phases["update"]),
    ]
    held = sum(on_each(model, 1, 1)[0].values()) + CONTEXT
    return Roofline(passes, {phase: held + peak for phase, peak in made.peaks.items()})


@contextmanager
def _kernels_of(config: RunConfig) -> Iterator[None]:
    """Allow TF32 as the run does."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = config.precision.tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
