"""What single settings cost or save, against what their operations predict.

Every row is a ratio of seconds of one phase, with a setting and without it, measured in turns in one run. The
prediction is the ratio of operations that torch counts for the same two settings (`dgpo plan`), or arithmetic that is
given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measuring import configuration, in_turns
from benchmarks.parts import registry_with_components
from dgpo_core.plugins.registry import Registry
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_schemas.run import RunConfig

__all__ = ["CHOICES", "Choice", "Outcome", "measure"]

NO_KL = ("objective.kl=0", "rewards=[{use: free}]")
"""With a reward that differs from member to member, so that all of them count."""
COMMON = ("rollout.groups=6", "rollout.group_size=12", "rollout.micro_batch=72", "optimizer.micro_batch=72")
Predict = Callable[[RunConfig, RunConfig, Registry], float]


@dataclass(frozen=True)
class Choice:
    """settings: with which the phase is compared to itself `without`."""

    name: str
    phase: str
    predict: Predict
    settings: Sequence[str]
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """Seconds of the phase with the settings over seconds without, as predicted and as measured."""

    name: str
    phase: str
    settings: Sequence[str]
    predicted: float
    measured: float


def _operations(phase: str) -> Predict:
    def predict(config: RunConfig, without: RunConfig, registry: Registry) -> float:
        plans = [make_plan(c, measure_model(c, registry), registry) for c in (config, without)]
        return plans[0].operations[phase] / plans[1].operations[phase]

    return predict


def _fixed(ratio: float) -> Predict:
    return lambda config, without, registry: ratio


CHOICES = (
    Choice("guidance, both predictions in one batch", "rollout", _operations("rollout"), ("rollout.guidance=4.5",)),
    Choice("the adapter merged into the weights", "rollout", _operations("rollout"), ("rollout.merge_adapter=true",)),
    Choice("the old policy's predictions, for the clip", "optimize", _operations("optimize"), ("objective.clip=0.01",)),
    Choice(
        "members of zero weight left out: best against worst, 2 of 12", "optimize", _fixed(2 / 12),
        ("weighting=best-vs-worst", *NO_KL), NO_KL,
    ),
    Choice(
        "activations computed again", "optimize", _operations("optimize"), ("backbone.gradient_checkpointing=true",)
    ),
    Choice(
        "groups twice as large as a micro-batch, processed in three passes of half of them", "optimize",
        _operations("optimize"),
        ("optimizer.micro_batch=6",), ("rollout.group_size=6", "rollout.groups=12", "optimizer.micro_batch=6"),
    ),
)  # fmt: skip


def measure(choice: Choice, *, iterations: int, turns: int) -> Outcome:
    """Both sides in turns."""
    registry = registry_with_components()
    settings = (choice.settings, choice.without)
    config, without = (configuration([*COMMON, *some], registry, iterations) for some in settings)
    predicted = choice.predict(config, without, registry)
    found = in_turns({"with": config, "without": without}, registry, [choice.phase], turns)
    ratio = found["with"][choice.phase] / found["without"][choice.phase]
    return Outcome(choice.name, choice.phase, tuple(choice.settings), predicted, ratio)
