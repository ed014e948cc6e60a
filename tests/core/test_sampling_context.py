"""`Backbone.sampling`: approximate predictions are for the rollouts of training, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.draws import Draws
from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
PROMPTS = [Prompt(text) for text in "abc"]


class Record:
    """Where passes ran: `entered` counts contexts, `passes` holds (inside, with gradient) of each pass."""

    def __init__(self) -> None:
        self.entered, self.inside = 0, False
        self.passes: list[tuple[bool, bool]] = []


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """The toy with predictions that are off by one in the context."""
    found, velocity = Record(), ToyBackbone.velocity

    @contextmanager
    def sampling(self: ToyBackbone) -> Iterator[None]:
        found.entered, found.inside = found.entered + 1, True
        try:
            yield
        finally:
            found.inside = False

    def recording(self: ToyBackbone, x_sigma: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        found.passes.append((found.inside, torch.is_grad_enabled()))
        return velocity(self, x_sigma, sigma, conditioning) + float(found.inside)

    monkeypatch.setattr(ToyBackbone, "sampling", sampling)
    monkeypatch.setattr(ToyBackbone, "velocity", recording)
    return found


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_it_is_entered_for_each_micro_batch_of_training_rollouts(
    make_config: Make, registry: Registry, record: Record, micro_batch: int
) -> None:
    engine = build_engine(make_config(), registry)

    def drawn(**how: Any) -> Tensor:
        rollout_sampler = engine.rollout_sampler(micro_batch=micro_batch, **how)
        return torch.cat([r.x0 for r in rollout_sampler.sample_groups(PROMPTS, 1, Draws(0), "policy")])

    exact = drawn()
    assert record.entered == 0
    approximate = drawn(training=True)
    assert record.entered == -(-3 // micro_batch)
    assert float((exact - approximate).min()) > 0.5, "velocities are larger by one"
    assert not record.inside


def test_losses_and_evaluations_are_exact(make_config: Make, registry: Registry, record: Record) -> None:
    config = make_config(run={"iterations": 2}, objective={"kl": 0.1, "clip": 1e-3}, evaluation={"every": 1})
    Trainer(config, registry).train()
    rollouts = config.run.iterations * config.rollout.steps
    assert record.passes.count((True, False)) == rollouts, "one micro-batch per iteration"
    assert record.passes.count((True, True)) == 0
    assert record.passes.count((False, True)) > 0, "losses of the policy"
    assert record.passes.count((False, False)) > rollouts, "losses of other models, and evaluations"


def test_it_is_refused_where_rollouts_must_be_exact(make_config: Make, registry: Registry, record: Record) -> None:
    engine = build_engine(make_config(), registry)
    engine.check_sampling(SimpleNamespace(needs_path=False))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"predictions in rollouts, but objective: dgpo compares the probabilities"):
        engine.check_sampling(SimpleNamespace(needs_path=True))  # type: ignore[arg-type]
    sharded = replace(engine, runtime=SimpleNamespace(sharded=True))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"which is not possible with weights sharded by run\.shard"):
        sharded.check_sampling(SimpleNamespace(needs_path=False))  # type: ignore[arg-type]


def test_something_else_than_a_context_is_named(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyBackbone, "sampling", lambda self: 3)
    engine = build_engine(make_config(), registry)
    with pytest.raises(PluginError, match="`sampling` must return a context manager, got 3"):
        list(engine.rollout_sampler(training=True).sample_groups(PROMPTS, 1, Draws(0), "policy"))
