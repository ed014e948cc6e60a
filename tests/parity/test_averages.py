"""Both moving averages against the authors' loop over 200 updates, and when rollouts change to the fast one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dgpo_core.training.policy import Policy
from dgpo_core.training.run import TrainingRun
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig
from tests.parity.published import Averages

TABLE = (8, 40, 80, 200)


def make(repeats: int = 1) -> Policy:
    data = run_data(Path("unused"), objective={"ema": {"repeats": repeats}})
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "options": {"double": True}}
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    return Policy(backbone, config.objective)


def weights(policy: Policy, model: str) -> np.ndarray:
    return torch.cat([t.flatten() for n, t in policy.state().items() if n.startswith(f"{model}/")]).numpy().copy()


@pytest.mark.parametrize("micro_batches", [1, 2, 6])
def test_both_averages_over_200_updates(micro_batches: int) -> None:
    policy = make(repeats=micro_batches)
    theirs = Averages(weights(policy, "policy"), micro_batches)
    generator = torch.Generator().manual_seed(0)
    compared = []
    for update in range(1, 201):
        with torch.no_grad():
            for parameter in policy.parameters.values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        policy.update_averages(update)
        theirs.update(weights(policy, "policy"))
        assert np.abs(weights(policy, "ema_fast") - theirs.fast).max() <= 1e-10, update
        # Their loop applies a move once now and, with more micro-batches, again during the next iteration.
        if micro_batches == 1 or (update + 1) % 8:
            assert np.abs(weights(policy, "ema") - theirs.slow).max() <= 1e-10, update
        if update in TABLE:
            compared.append(update)
            assert np.abs(weights(policy, "ema") - weights(policy, "policy")).max() > 1e-3
    assert compared == list(TABLE)


def split_samples(repeats: int) -> dict[int, tuple[float, float]]:
    """How much of trained weights that jump from 0 to 1 at the first update is in (fast, slow)."""
    policy = make(repeats)
    with torch.no_grad():
        for model in ("policy", "ema_fast", "ema"):
            torch._foreach_zero_(policy._weights[model])
        torch._foreach_add_(policy._weights["policy"], 1.0)
    found = {}
    for update in range(1, max(TABLE) + 1):
        policy.update_averages(update)
        found[update] = float(weights(policy, "ema_fast")[0]), float(weights(policy, "ema")[0])
    return found


def test_the_share_of_trained_weights() -> None:
    """Closed forms: 1 - 8/17 from the 7th update on, then one factor (1 + k) / (10 + k) a move, 0.9 from k = 80 on."""
    found = split_samples(1)
    assert found[1][0] == 1.0  # the first decay is 0
    assert found[6][1] == 0.0
    assert found[7][1] == found[8][1] == pytest.approx(9 / 17, abs=1e-15)
    left = 1.0
    for k in range(7, 201, 8):
        left *= min((1 + k) / (10 + k), 0.9)
        assert found[k][1] == pytest.approx(1 - left, abs=1e-12)
    assert round(found[8][1], 2) == 0.53
    assert split_samples(2)[8][1] == pytest.approx(1 - (8 / 17) ** 2, abs=1e-15)


def test_a_slow_average_that_has_not_moved_is_replaced_by_the_policy() -> None:
    policy = make()
    assert policy.available("ema") == "policy"
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter += 1.0
    for update in range(1, 9):
        policy.update_averages(update)
        assert policy.available("ema") == ("policy" if update < 7 else "ema")
        assert policy.available("ema_fast") == "ema_fast"
        with policy.activate("ema"):
            seen = np.concatenate([p.detach().numpy().ravel() for p in policy.parameters.values()])
        wanted = weights(policy, "ema" if update >= 7 else "policy")
        assert np.array_equal(seen, wanted), update
    policy.load_state(policy.state(), updates=3)
    assert policy.available("ema") == "policy"


def test_rollouts_come_from_the_fast_average_after_the_change(make_config: Callable[..., RunConfig]) -> None:
    for ema_rollouts_after in (0, 2, 200):
        config = make_config(objective={"ema_rollouts_after": ema_rollouts_after})
        theirs = Averages(np.zeros(1))
        for update in range(ema_rollouts_after + 3):
            run = SimpleNamespace(config=config)
            assert TrainingRun.rollout_model(run, update) == theirs.rollouts(ema_rollouts_after)  # type: ignore[arg-type]
            theirs.update(np.ones(1))
