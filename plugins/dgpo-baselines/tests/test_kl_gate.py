"""GARDO's gate of the KL term (arXiv 2512.24138): which samples have one, by brute force, and in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_baselines.options import RegularizedDgpoOptions
from dgpo_baselines.regularized_dgpo import RegularizedDgpo
from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Predictions, Prompt, ScoredGroups, Scores
from dgpo_kit.toy import BrightnessOptions, BrightnessReward, run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.rewards import AdvantagesSection
from dgpo_schemas.sections.training import ObjectiveSection


def objective(share: float) -> RegularizedDgpo:
    return RegularizedDgpo(ObjectiveSection(kl=0.5, clip=None), RegularizedDgpoOptions(kl_uncertain=share))


def scored_groups(
    rewards: torch.Tensor, scored: torch.Tensor, sources: Sequence[str] = (), **others: torch.Tensor
) -> ScoredGroups:
    """Groups of a reward `main` that counts, and others that do not."""
    prompts = tuple(Prompt("a", source=source) for source in sources or ["one"] * len(rewards))
    counted = {name: torch.full((len(rewards),), name == "main") for name in ("main", *others)}
    each = {"main": rewards, **others}
    return ScoredGroups(prompts, (), (), rewards, rewards, scored, each, torch.zeros(len(rewards)), counted=counted)


def beaten(values: list[float], mine: float, known: list[bool]) -> float:
    """The share of known values below mine; an equal one counts half."""
    some = [value for value, one in zip(values, known, strict=True) if one]
    return (sum(v < mine for v in some) + (sum(v == mine for v in some) - 1) / 2) / len(some)


def test_the_most_uncertain_samples_by_brute_force() -> None:
    """Two rewards, one of which did not score a sample; many values are equal."""
    drawn = torch.Generator().manual_seed(0)
    rewards, first, second = torch.rand(3, 4, 6, generator=drawn).double().round(decimals=1)
    scored = torch.rand(4, 6, generator=drawn) > 0.1
    first[1, 2] = torch.nan
    found = objective(0.25).kl_scales(scored_groups(rewards, scored, first=first, second=second))
    assert found is not None
    flat, known = rewards.flatten().tolist(), scored.flatten().tolist()
    uncertain = []
    for i in range(24):
        shares = []
        for other in (first, second):
            values = other.flatten().tolist()
            there = [k and v == v for k, v in zip(known, values, strict=True)]
            shares += [beaten(values, values[i], there)] if there[i] else []
        uncertain.append(beaten(flat, flat[i], known) - sum(shares) / len(shares) if known[i] else -9.0)
    smallest = sorted(uncertain, reverse=True)[-(-int(scored.sum()) // 4) - 1]
    assert found.flatten().tolist() == [float(u > smallest - 1e-12 and u > 0) for u in uncertain]


def test_equal_samples_are_treated_alike() -> None:
    """With rewards of 0 and 1: all that another reward contradicts, none if it contradicts none."""
    rewards = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0]]).double()
    scored = torch.ones(3, 4).bool()
    agreed = objective(0.1).kl_scales(scored_groups(rewards, scored, other=rewards.clone()))
    assert agreed is not None
    assert not agreed.any()
    other = rewards.clone()
    other[0, 2] = other[2, 2] = 0
    gated = objective(0.1).kl_scales(scored_groups(rewards, scored, other=other))
    assert gated is not None
    assert gated.nonzero().tolist() == [[0, 2], [2, 2]]


def test_sources_are_ranked_apart_and_need_another_reward() -> None:
    rewards = torch.arange(12.0).view(3, 4).double()
    other = rewards.flip(1).clone()
    other[2] = torch.nan  # the second source does not use it
    groups = scored_groups(rewards, torch.ones(3, 4).bool(), ["one", "one", "two"], other=other)
    found = objective(0.25).kl_scales(groups)
    assert found is not None
    alone = objective(0.25).kl_scales(scored_groups(rewards[:2], torch.ones(2, 4).bool(), other=other[:2]))
    assert alone is not None
    assert torch.equal(found[:2], alone)
    assert alone.any()
    assert not found[2].any()


def test_the_scale_is_that_of_the_kl_term() -> None:
    rewards = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).double()
    groups = scored_groups(rewards, torch.ones(2, 3).bool(), other=rewards.flip(0))
    plain = RegularizedDgpo(ObjectiveSection(kl=0.5, clip=None), RegularizedDgpoOptions())
    assert plain.kl_scales(groups) is None
    v = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    p = Predictions(v, v.flip(0), v[:, 0], v[:, 1], v[:, 1], v[:, 0].abs() + 1, v.flip(1), v.flip(1))
    gated = replace(p, kl_scale=torch.tensor([1.0, 0, 1]))
    statistic = torch.zeros(3)
    with_gate, without = (objective(1.0).loss(one, statistic).loss for one in (gated, p))
    kl = (v - v.flip(1)).square().mean(1)
    assert (without - with_gate).tolist() == pytest.approx([0, 0.5 * float(kl[1]), 0], abs=1e-6)


def test_wrong_scales_of_an_objective_are_named() -> None:
    class Negative(RegularizedDgpo):
        def kl_scales(self, groups: ScoredGroups) -> torch.Tensor | None:
            return -torch.ones_like(groups.rewards)

    made = Negative(ObjectiveSection(), RegularizedDgpoOptions())
    groups = scored_groups(torch.rand(2, 3).double(), torch.ones(2, 3).bool())
    with pytest.raises(PluginError, match=r"Negative: `kl_scales` must return one finite factor >= 0 per member"):
        compute_advantages(groups, AdvantagesSection(), AbsAdvantage(None), made)


class Darkness(BrightnessReward):
    """The opposite of brightness."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return super().score(1 - media, prompts)


class _Plugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("darkness", "Theirs", f"{__name__}:Darkness", BrightnessOptions)]


@pytest.fixture
def known(registry: Registry) -> Registry:
    registry.register(_Plugin(), distribution="theirs", version="1.0")
    return registry


def configured(tmp_path: Path, name: str, share: float | None, kl: float = 0.5, weight: float = 0.0) -> RunConfig:
    run = {"name": name, "output": str(tmp_path), "iterations": 3, "seed": 3, "device": "cpu", "threads": 1}
    options: dict[str, Any] = {} if share is None else {"kl_uncertain": share}
    section = {"use": "regularized-dgpo", "kl": kl, "options": options}
    data = run_data(tmp_path, objective=section)
    data["rewards"] = [*data["rewards"], {"use": "darkness", "name": "other", "weight": weight}]
    return RunConfig.model_validate(data | {"run": run})


def test_in_a_run(known: Registry, tmp_path: Path) -> None:
    """The share reaches the loss: none (all samples have the KL term), half and a tenth train other weights."""
    weights = {}
    for name, share in (("none", None), ("half", 0.5), ("few", 0.1)):
        config = configured(tmp_path, name, share)
        Trainer(config, known).train()
        weights[name] = (run_path(config) / "checkpoints/000003/weights.safetensors").read_bytes()
        assert len((run_path(config) / "metrics.jsonl").read_text().splitlines()) == 3
    assert len(set(weights.values())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.0}, "compares with rewards of weight 0, of which the run has none"),
        ({"kl": 0.0}, "kl_uncertain has no effect because objective.kl is 0"),
    ],
)
def test_what_has_no_effect_is_refused(known: Registry, tmp_path: Path, change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(configured(tmp_path, "run", 0.1, **change), known).build()
