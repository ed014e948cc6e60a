"""Score of each variant after as many iterations as fit into the same seconds, and of the base model."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord
from experiments.kept import Kept
from experiments.seconds.costs import Cost, Round, config_of, cost_of, measure_costs
from experiments.seconds.variants import BASELINE, VARIANTS, Variant, as_before

__all__ = ["Measured", "at", "iterations_within", "measure"]


@dataclass(frozen=True, slots=True)
class Measured:
    """rounds: the costs; digests: of the weights after three iterations by exact variant; scores: by variant and seed,
    at `iterations`, which take the budget; base: the base model's by seed."""

    budget: float
    rounds: Sequence[Round]
    digests: Mapping[str, str]
    iterations: Mapping[str, float]
    scores: Mapping[str, Mapping[int, float]]
    base: Mapping[int, float]


def iterations_within(cost: Cost, budget: float) -> float:
    """Return the number of iterations, with a fraction, that take the seconds of the budget."""
    if budget <= 2 * cost.early:
        return budget / cost.early
    return 2 + (budget - 2 * cost.early) / cost.late


def at(curve: Mapping[str, float], place: float) -> float:
    """Return the score at a number of iterations with a fraction, on the line between the scores around it."""
    low, high = math.floor(place), math.ceil(place)
    return curve[str(low)] + (place - low) * (curve[str(high)] - curve[str(low)])


def measure(
    output: Path, registry: Registry, *, budget: float, seeds: int, rounds: int, on_message: Callable[[str], None]
) -> Measured:
    """Measure everything that `output`/measured.jsonl does not have yet."""
    log = Kept(output / "measured.jsonl")
    found = log.once({"costs": rounds}, lambda: [asdict(r) for r in measure_costs(registry, rounds, on_message)])
    costs = [Round(**one) for one in found]
    wanted = {v.name: iterations_within(cost_of(v, costs), budget) for v in VARIANTS}
    digests = {}
    for variant in VARIANTS:
        if variant.kind == "exact":
            on_message(f"weights of {variant.name}")
            digests[variant.name] = log.once({"weights": variant.name}, lambda v=variant: _digest(v, registry))  # type: ignore[misc]
    scores: dict[str, dict[int, float]] = {v.name: {} for v in VARIANTS}
    base: dict[int, float] = {}
    for seed in range(seeds):
        for path in dict.fromkeys(v.path for v in VARIANTS):
            on_message(f"scores of {path}, seed {seed}")
            sharing = [v for v in VARIANTS if v.path == path]
            first = {0} if path == BASELINE else set()
            due = sorted(first.union(*({math.floor(wanted[v.name]), math.ceil(wanted[v.name])} for v in sharing)))
            cell = {"scores": path, "seed": seed, "iterations": due}
            curve = log.once(cell, lambda v=sharing[-1], due=due, seed=seed: _scores(v, registry, seed, due))  # type: ignore[misc]
            if path == BASELINE:
                base[seed] = curve["0"]
            for variant in sharing:
                scores[variant.name][seed] = round(at(curve, wanted[variant.name]), 6)
    return Measured(budget, costs, digests, wanted, scores, base)


class _After(Callback):
    """Calls a function after iterations, and with 0 before the first one."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def on_iteration_start(self, iteration: int) -> None:
        """Call with 0."""
        if iteration == 0:
            self._call(0)

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """Call with the number of finished iterations."""
        self._call(metrics.iteration)


def _digest(variant: Variant, registry: Registry) -> str:
    """Return a digest of all weights after three iterations, the last of which moves the fast EMA from the policy."""
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(config_of(variant, directory, 0, 3, registry), registry)
        with as_before(variant.engine):
            trainer.train(max_iterations=3)
        weights = trainer.build().policy.state()
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()[:16]


def _scores(variant: Variant, registry: Registry, seed: int, due: Sequence[int]) -> dict[str, float]:
    """Return the scores after the iterations in `due`; 0 is the base model."""
    curve: dict[str, float] = {}

    def evaluate(iteration: int) -> None:
        run = trainer.build()
        if iteration in due:
            assert run.evaluator is not None
            model = run.policy.available(run.config.evaluation.model)
            curve[str(iteration)] = round(run.evaluator.evaluate(model, iteration).records[0].value, 6)

    with tempfile.TemporaryDirectory() as directory:
        config = config_of(variant, directory, seed, due[-1], registry)
        trainer = Trainer(config, registry, callbacks=[_After(evaluate)])
        with as_before(variant.engine):
            trainer.train(max_iterations=due[-1])
    return curve
