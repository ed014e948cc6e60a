from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig


def make(train: str = "lora", **averages: object) -> Policy:
    data = run_data(Path("unused"), objective=averages)
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "train": train, "options": {"double": True}}
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    return Policy(backbone, config.objective)


def run(policy: Policy) -> Tensor:
    x = torch.ones(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        return policy.velocity(
            x, torch.full((2,), 0.5, dtype=torch.float64), policy.backbone.encode(prompts_of(["a", "b"]))
        )


def perturb(policy: Policy, value: float) -> None:
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter += value


@pytest.mark.parametrize("train", ["lora", "full"])
def test_models_are_separate_and_come_back(train: str) -> None:
    policy = make(train)
    start = run(policy)
    perturb(policy, 0.1)
    moved = run(policy)
    assert not torch.equal(moved, start)
    policy.load_state(policy.state(), updates=100)  # so many that the EMA is itself
    for name in ("base", "ema_fast", "ema"):
        with policy.activate(name):
            assert torch.equal(run(policy), start), name
            with pytest.raises(AssertionError), policy.activate("ema_fast"):
                pass
            assert torch.equal(run(policy), start), name
        assert torch.equal(run(policy), moved)


def test_a_model_is_left_when_its_body_fails() -> None:
    policy = make()
    perturb(policy, 0.1)
    moved = run(policy)
    with pytest.raises(RuntimeError), policy.activate("base"):
        raise RuntimeError
    assert torch.equal(run(policy), moved)


def test_switching_copies_nothing() -> None:
    policy = make()
    storage = {name: p.data_ptr() for name, p in policy.parameters.items()}
    owned = {name: tensor.data_ptr() for name, tensor in policy.state().items()}
    with policy.activate("ema_fast"):
        assert {f"ema_fast/{n}": p.data_ptr() for n, p in policy.parameters.items()}.items() <= owned.items()
    assert {name: p.data_ptr() for name, p in policy.parameters.items()} == storage


def test_moving_averages_follow_their_recursions() -> None:
    """Other settings than the published ones, which tests/parity compares over 200 updates."""
    policy = make(ema_fast={"max_decay": 0.3, "ramp": 0.1}, ema={"decay": 0.4, "every": 3, "repeats": 2})
    name = next(iter(policy.parameters))
    old = slow = policy.state()[f"policy/{name}"].clone()
    for update in range(1, 8):
        perturb(policy, 0.5)
        policy.update_averages(update)
        theta = policy.state()[f"policy/{name}"]
        decay = min(0.3, 0.1 * (update - 1))
        old = decay * old + (1 - decay) * theta
        if update in (2, 5):
            decay = min((1 + update) / (10 + update), 0.4) ** 2
            slow = decay * slow + (1 - decay) * theta
    assert policy.state()[f"ema_fast/{name}"].numpy() == pytest.approx(old.numpy(), abs=1e-12)
    assert policy.state()[f"ema/{name}"].numpy() == pytest.approx(slow.numpy(), abs=1e-12)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_change_norm_is_the_distance_from_the_start(train: str) -> None:
    """0 for what was not trained, whatever an adapter's own random weights are; and not moved by resuming."""
    policy = make(train)
    assert policy.change_norm() == 0.0
    perturb(policy, 0.1)
    count = sum(p.numel() for p in policy.parameters.values())
    assert policy.change_norm() == pytest.approx(0.1 * count**0.5)
    policy.update_averages(1)
    resumed = make(train)
    resumed.load_state(policy.state(), updates=1)
    assert resumed.change_norm() == policy.change_norm()
    perturb(policy, -0.1)
    assert policy.change_norm() == pytest.approx(0.0, abs=1e-9)


def test_prompts_are_encoded_once_and_rows_come_back_in_order() -> None:
    policy = make()
    asked: list[str] = []
    backbone = policy.backbone
    encode = backbone.encode

    def counting(prompts: list[Prompt]) -> Conditioning:
        asked.extend(prompt.text for prompt in prompts)
        return encode(prompts)

    backbone.encode = counting  # type: ignore[method-assign,assignment]
    cache = ConditioningCache(backbone)
    texts = prompts_of(["a", "b", "c", "a", "b"])
    assert torch.equal(cache(texts).tensors["c"], encode(texts).tensors["c"])
    cache(prompts_of(["c", "b"]))
    assert asked == ["a", "b", "c"]


def test_an_encoding_does_not_depend_on_what_else_is_asked_for() -> None:
    """Row by row: a batch's size would decide the last bits of a real text encoder's rows."""
    policy = make()
    sizes: list[int] = []
    backbone = policy.backbone
    encode = backbone.encode

    def counting(prompts: list[Prompt]) -> Conditioning:
        sizes.append(len(prompts))
        return encode(prompts)

    backbone.encode = counting  # type: ignore[method-assign,assignment]
    ConditioningCache(backbone)(prompts_of(["a", "b", "c"]))
    assert sizes == [1, 1, 1]


def test_the_cache_forgets_the_longest_unused_prompts() -> None:
    policy = make()
    row = 4 * 8
    cache = ConditioningCache(policy.backbone, limit_bytes=2 * row)
    a, b, c = prompts_of(["a", "b", "c"])
    cache([a, b])
    cache([a])
    cache([c])
    assert list(cache._rows) == [("prompt", a.key), ("prompt", c.key)]
    assert len(cache(prompts_of(["p", "q", "r"]))) == 3  # more than fit are still returned
