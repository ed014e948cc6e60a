"""Which parts of a model's passes are fast: the setting, the device, the data types and the backbone decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch

from dgpo_core.errors import PluginError, UserError
from dgpo_core.training.policy import Policy
from dgpo_core.training.precision import choose, described, speed_up
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions
from dgpo_schemas.run import RunConfig

BOTH = frozenset({"adapter", "norms"})


def config(backbone: Mapping[str, Any] | None = None, **precision: str) -> RunConfig:
    return RunConfig.model_validate({
        "run": {"name": "r", "iterations": 2},
        "backbone": {"use": "toy", "checkpoint": "toy", "dtype": "bfloat16", **(backbone or {})},
        "prompts": {"train": {"use": "toy"}},
        "rewards": [{"use": "brightness"}],
        "evaluation": {"every": 0, "at_start": False},
        "precision": {"autocast": "bf16", **precision},
    })  # fmt: skip


def said(run: RunConfig, device: str = "cuda", supported: frozenset[str] = BOTH) -> str:
    return described(choose(run, supported, device))


def test_auto_is_fast_on_cuda_in_bfloat16() -> None:
    assert said(config()) == "adapter fast, norms fast"
    assert said(config(adapter="exact")) == "adapter exact, norms fast"
    assert said(config(), "cpu") == "adapter exact (on cpu), norms exact (on cpu)"
    assert said(config(), "mps") == "adapter exact (on mps), norms exact (on mps)"
    for run, reason in (
        (config({"dtype": "float32"}), "backbone.dtype: float32"),
        (config({"train": "full"}), "backbone.train: full"),
        (config(autocast="no"), "precision.autocast: no"),
    ):
        assert said(run) == f"adapter exact ({reason}), norms exact ({reason})"
    assert said(config({"lora": {"dora": True}})) == "adapter exact (backbone.lora.dora), norms fast"


def test_fast_is_fast_on_every_device() -> None:
    assert said(config(adapter="fast", norms="fast"), "cpu") == "adapter fast, norms fast"
    assert said(config(adapter="fast", autocast="no")) == "adapter fast, norms exact (precision.autocast: no)"


def test_a_backbone_without_a_fast_form() -> None:
    none = "exact (no fast form)"
    assert said(config(), supported=frozenset()) == f"adapter {none}, norms {none}"
    assert said(config(), supported=frozenset({"norms"})) == f"adapter {none}, norms fast"
    for part, run in (("adapter", config(adapter="fast")), ("norms", config(norms="fast"))):
        with pytest.raises(UserError, match=rf"^precision\.{part}: the backbone toy has no fast form of it; use auto"):
            said(run, supported=frozenset())


class _Fast(ToyBackbone):
    supports_fast = BOTH
    parts: Collection[str] = ()

    def speed_up(self, parts: Collection[str]) -> Mapping[str, str]:
        self.parts = parts
        return {"norms": "3 of them"}


class _Forgetful(ToyBackbone):
    supports_fast = BOTH


def toy(kind: type[ToyBackbone], run: RunConfig) -> Any:
    return kind(run.backbone, ToyOptions(), device=torch.device("cpu"))


def test_the_backbone_is_told_once_and_says_what_it_did() -> None:
    run = config({"dtype": "float32"}, norms="fast", autocast="no")
    backbone = toy(_Fast, run)
    assert described(speed_up(backbone, run, "cpu")) == "adapter exact (on cpu), norms fast (3 of them)"
    assert backbone.parts == ["norms"]
    backbone = toy(_Fast, run)
    speed_up(backbone, config({"dtype": "float32"}), "cpu")
    assert backbone.parts == ()
    with pytest.raises(PluginError, match=r"^backbone toy: `supports_fast` contains norms, but _Forgetful does not"):
        speed_up(toy(_Forgetful, run), run, "cpu")


def test_the_adapter_is_told_of_each_change_before_the_next_pass() -> None:
    """And not again while nothing changes, nor for the base model, which does not use it."""
    run = config({"dtype": "float32"}, autocast="no")
    policy = Policy(toy(ToyBackbone, run), run.objective)
    adapter: Any = policy.backbone.adapter
    seen: list[str] = []
    adapter.weights_changed = lambda: seen.append("changed")

    def told() -> int:
        """Twice a pass; return of how many changes the adapter was told."""
        for _ in range(2):
            x, sigma = torch.ones(2, *SHAPE), torch.full((2,), 0.5)
            policy.velocity(x, sigma, policy.backbone.encode(prompts_of(["a", "b"])))
        count = len(seen)
        seen.clear()
        return count

    assert told() == 1
    assert told() == 0
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(1)
    policy.update_averages(1)
    assert told() == 1
    policy.load_state(policy.state(), 100)  # after so many updates the EMA is itself
    assert told() == 1
    for model in ("ema_fast", "ema"):
        with policy.activate(model):
            assert told() == 1
        assert told() == 1
    with policy.activate("base"):
        assert told() == 0
    assert told() <= 1
    policy.start_from(dict(policy.parameters))
    assert told() == 1
    with policy.unchanged():
        pass
    assert told() == 1
