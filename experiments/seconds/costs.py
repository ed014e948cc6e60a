"""CPU seconds of the two phases of an iteration, in rounds that take every variant in turn.

Other work on a machine makes even CPU seconds longer, by its use of caches and of the cores' other threads. So each
phase is timed by itself, a second or two at a time, and variants are compared within a round.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.draws import Draws
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.store import RunStore
from dgpo_core.training.loop import Loop
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.state import RunState
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import TrainingBatch
from dgpo_schemas.run import RunConfig
from experiments.catalog import HERE
from experiments.seconds.variants import SETTINGS, VARIANTS, Engine, Variant, as_before

__all__ = ["Cost", "Round", "config_of", "cost_of", "measure_costs"]

BASE = HERE / "base-video.yaml"
ENGINES: Sequence[Sequence[Engine]] = ((), ("graph",), ("ema",), ("graph", "ema"))


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds in one round. rollouts: of rollouts and scoring by the name of the first variant with the settings;
    optimize: of an update while the fast EMA is the policy, by the engine's savings, such as "graph+ema"."""

    rollouts: Mapping[str, float]
    optimize: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of an iteration: while the fast EMA is the policy (the first two), and after them."""

    early: float
    late: float


def cost_of(variant: Variant, rounds: Sequence[Round]) -> Cost:
    """Return the medians over rounds. After the first two iterations an equal EMA saves nothing."""
    rollouts = statistics.median(one.rollouts[_drawn_by(variant).name] for one in rounds)
    late = [saving for saving in variant.engine if saving != "ema"]
    early, late_ = (
        statistics.median(one.optimize["+".join(engine)] for one in rounds) for engine in (variant.engine, late)
    )
    return Cost(rollouts + early, rollouts + late_)


def _drawn_by(variant: Variant) -> Variant:
    """Return the first variant with the same settings."""
    return next(other for other in VARIANTS if other.settings == variant.settings)


def measure_costs(registry: Registry, rounds: int, on_message: Callable[[str], None]) -> list[Round]:
    """Time the phases in `rounds` rounds, after one to warm up."""
    drawing = list(dict.fromkeys(_drawn_by(variant).name for variant in VARIANTS))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as closing:
        runs: dict[str, TrainingRun] = {}
        for variant in VARIANTS:
            if variant.name in drawing:
                trainer = Trainer(config_of(variant, f"{directory}/{len(runs)}", 0, 1, registry), registry)
                closing.callback(trainer.close)
                runs[variant.name] = trainer.build()
        found = []
        for number in range(rounds + 1):
            on_message(f"costs, round {number} of {rounds}")
            found.append(_round(runs, number))
        return found[1:]


def _round(runs: Mapping[str, TrainingRun], number: int) -> Round:
    rollouts, batches = {}, []
    for name, run in runs.items():
        started = time.process_time()
        groups = Loop(run, RunState(run.config), RunStore()).sample_groups_and_score()
        rollouts[name] = time.process_time() - started
        batches.append(compute_advantages(groups, run.config.advantages, run.weighting, run.objective))
    run, optimize = next(iter(runs.values())), {}
    for engine in ENGINES:
        with as_before(engine), run.policy.unchanged():
            optimize["+".join(engine)] = _seconds_of_update(run, batches[0], number)
    return Round(rollouts, optimize)


def _seconds_of_update(run: TrainingRun, batch: TrainingBatch, number: int) -> float:
    """Return the CPU seconds of an update from the run's first weights."""
    sigmas = run.timesteps.draw(run.config.timesteps.count, run.timestep_context(0), Draws(number))
    optimizer = run.make_optimizer()
    started = time.process_time()
    for _ in range(run.config.optimizer.passes):
        optimizer.step(batch, sigmas, Draws(number).at("optimise"))
    return time.process_time() - started


def config_of(variant: Variant, directory: str, seed: int, iterations: int, registry: Registry) -> RunConfig:
    """Return a variant's configuration with one iteration more than `iterations`, because a run ends with an
    evaluation."""
    here: dict[str, Any] = {"run.output": directory, "run.seed": seed, "run.iterations": iterations + 1}
    settings = [f"{key}={json.dumps(value)}" for key, value in {**SETTINGS, **variant.settings, **here}.items()]
    return load_run_config(BASE, settings, registry)
