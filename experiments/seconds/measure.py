"""Measure the cost of an iteration of each variant, then its score after as many iterations as fit into the seconds.

Seconds are CPU seconds of the process, which other work on the machine affects less than time on a clock. Costs are
measured in turns. Every measurement is a line of measured.jsonl: the same command continues after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord
from dgpo_schemas.run import RunConfig
from experiments.catalog import HERE
from experiments.seconds.variants import BASELINE, SETTINGS, VARIANTS, Variant, as_before

__all__ = ["Cost", "Measured", "costs_of", "iterations_within", "measure"]

BASE = HERE / "base-video.yaml"
TIMED = 3
"""Iterations of a cost measurement; the first one warms up."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of an iteration: while the fast EMA is the policy (the first two), and after them."""

    early: float
    late: float

    def of(self, iterations: int) -> float:
        """Return the seconds of a run's first iterations."""
        return self.early * min(iterations, 2) + self.late * max(iterations - 2, 0)


@dataclass(frozen=True, slots=True)
class Measured:
    """costs: CPU seconds of iterations 2 and 3 by variant, one pair per turn; digests: of the weights after these
    iterations; scores: by variant and seed, after `iterations`; base: the base model's by seed."""

    budget: float
    costs: Mapping[str, Sequence[Sequence[float]]]
    digests: Mapping[str, str]
    iterations: Mapping[str, int]
    scores: Mapping[str, Mapping[int, float]]
    base: Mapping[int, float]


def iterations_within(cost: Cost, budget: float) -> int:
    """Return the number of iterations whose seconds are nearest to the budget, at least 1."""
    count = 1
    while abs(cost.of(count + 1) - budget) <= abs(cost.of(count) - budget):
        count += 1
    return count


def costs_of(variant: Variant, turns: Sequence[Sequence[float]]) -> Cost:
    """Return the medians over turns of (iteration 2, iteration 3). The two differ only by the pass of an equal EMA."""
    if "ema" in variant.engine:
        return Cost(*(statistics.median(turn[i] for turn in turns) for i in (0, 1)))
    every = statistics.median(seconds for turn in turns for seconds in turn)
    return Cost(every, every)


def measure(
    output: Path, registry: Registry, *, budget: float, seeds: int, turns: int, on_message: Callable[[str], None]
) -> Measured:
    """Measure everything that `output`/measured.jsonl does not have yet."""
    log = _Log(output / "measured.jsonl")
    for turn in range(turns):
        for variant in VARIANTS:
            on_message(f"cost of {variant.name}, turn {turn + 1} of {turns}")
            log.once({"cost": variant.name, "turn": turn}, lambda v=variant: _cost(v, registry))  # type: ignore[misc]
    found = {v.name: [log.found[_key({"cost": v.name, "turn": t})] for t in range(turns)] for v in VARIANTS}
    costs = {name: [one["seconds"] for one in each] for name, each in found.items()}
    wanted = {v.name: iterations_within(costs_of(v, costs[v.name]), budget) for v in VARIANTS}
    scores: dict[str, dict[int, float]] = {v.name: {} for v in VARIANTS}
    base: dict[int, float] = {}
    for seed in range(seeds):
        for path in dict.fromkeys(v.path for v in VARIANTS):
            on_message(f"scores of {path}, seed {seed}")
            sharing = [v for v in VARIANTS if v.path == path]
            due = sorted({0 for v in sharing if v.name == BASELINE} | {wanted[v.name] for v in sharing})
            cell = {"scores": path, "seed": seed, "iterations": due}
            curve = log.once(cell, lambda v=sharing[-1], due=due, seed=seed: _scores(v, registry, seed, due))  # type: ignore[misc]
            if path == BASELINE:
                base[seed] = curve["0"]
            for variant in sharing:
                scores[variant.name][seed] = curve[str(wanted[variant.name])]
    digests = {name: each[0]["weights"] for name, each in found.items()}
    return Measured(budget, costs, digests, wanted, scores, base)


class _Log:
    """Results by what was measured, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.found: dict[str, Any] = dict(map(json.loads, lines))

    def once(self, what: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """Return the result of `work`, which runs unless the file has it."""
        key = _key(what)
        if key not in self.found:
            self.found[key] = work()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.found[key]]) + "\n")
        return self.found[key]


def _key(what: Mapping[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)


class _Clock(Callback):
    """CPU seconds of each iteration, without evaluations."""

    def __init__(self, then: Callable[[int], None] = lambda iteration: None) -> None:
        self.seconds: list[float] = []
        self._then = then

    def on_iteration_start(self, iteration: int) -> None:
        """Start the clock, after the evaluation of the base model."""
        if iteration == 0:
            self._then(0)
        self._started = time.process_time()

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """Stop the clock."""
        self.seconds.append(time.process_time() - self._started)
        self._then(metrics.iteration)


def _cost(variant: Variant, registry: Registry) -> dict[str, Any]:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = _trainer(variant, registry, directory, 0, TIMED, clock)
        with as_before(variant.engine):
            trainer.train(max_iterations=TIMED)
        weights = trainer.build().policy.state()
    digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))
    return {"seconds": [round(s, 4) for s in clock.seconds[1:]], "weights": digest.hexdigest()[:16]}


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
        trainer = _trainer(variant, registry, directory, seed, due[-1], _Clock(evaluate))
        with as_before(variant.engine):
            trainer.train(max_iterations=due[-1])
    return curve


def _trainer(
    variant: Variant, registry: Registry, directory: str, seed: int, iterations: int, clock: _Clock
) -> Trainer:
    return Trainer(_config(variant, registry, directory, seed, iterations), registry, callbacks=[clock])


def _config(variant: Variant, registry: Registry, directory: str, seed: int, iterations: int) -> RunConfig:
    """One iteration more than are run, because a run ends with an evaluation."""
    here = {"run.output": directory, "run.seed": seed, "run.iterations": iterations + 1}
    settings = [f"{key}={json.dumps(value)}" for key, value in {**SETTINGS, **variant.settings, **here}.items()]
    return load_run_config(BASE, settings, registry)
