"""GARDO's gate of the KL term (arXiv 2512.24138): which samples have one, by brute force, and in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_baselines.options import RegularizedDgpoOptions
from dgpo_baselines.regularized_dgpo import RegularizedDgpo
from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.groups import kl_scales
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Predictions, ScoredGroups
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.training import ObjectiveSection


def objective(share: float, others: list[str]) -> RegularizedDgpo:
    made = RegularizedDgpo(ObjectiveSection(kl=0.5, clip=None), RegularizedDgpoOptions(kl_uncertain=share))
    made._others = others
    return made


def scored_groups(rewards: torch.Tensor, scored: torch.Tensor, **others: torch.Tensor) -> ScoredGroups:
    zero = torch.zeros(len(rewards))
    return ScoredGroups((), (), (), rewards, rewards, scored, {"main": rewards, **others}, zero)


def beaten(values: list[float], mine: float, known: list[bool]) -> float:
    """The share of known values below mine; an equal one counts half."""
    some = [value for value, one in zip(values, known, strict=True) if one]
    return (sum(v < mine for v in some) + (sum(v == mine for v in some) - 1) / 2) / len(some)


def test_the_most_uncertain_samples_by_brute_force() -> None:
    drawn = torch.Generator().manual_seed(0)
    rewards, first, second = torch.rand(3, 4, 6, generator=drawn).double().round(decimals=1)
    scored = torch.rand(4, 6, generator=drawn) > 0.1
    first[1, 2] = torch.nan
    found = objective(0.25, ["first", "second"]).kl_scales(scored_groups(rewards, scored, first=first, second=second))
    assert found is not None
    flat, known = rewards.flatten().tolist(), scored.flatten().tolist()
    uncertain = []
    for i in range(24):
        shares = []
        for other in (first, second):
            values = other.flatten().tolist()
            there = [k and v == v for k, v in zip(known, values, strict=True)]
            shares.append(beaten(values, values[i], there) if there[i] else 0.0)
        uncertain.append(beaten(flat, flat[i], known) - sum(shares) / 2 if known[i] else -9.0)
    count = -(-int(scored.sum()) // 4)
    chosen = sorted(range(24), key=lambda i: -uncertain[i])[:count]
    kept = found.flatten().nonzero().flatten().tolist()
    assert len(kept) == count
    assert sorted(uncertain[i] for i in kept) == pytest.approx(sorted(uncertain[i] for i in chosen))


def test_a_share_of_1_is_the_loss_without_a_gate() -> None:
    rewards = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).double()
    groups = scored_groups(rewards, torch.ones(2, 3).bool(), other=rewards.flip(0))
    whole = objective(1.0, ["other"]).kl_scales(groups)
    assert whole is not None
    assert whole.eq(1).all()
    plain = RegularizedDgpo(ObjectiveSection(kl=0.5, clip=None), RegularizedDgpoOptions())
    assert plain.kl_scales(groups) is None
    v = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    p = Predictions(v, v.flip(0), v[:, 0], v[:, 1], v[:, 1], v[:, 0].abs() + 1, v.flip(1), v.flip(1))
    gated = replace(p, kl_scale=torch.tensor([1.0, 0, 1]))
    statistic = torch.zeros(3)
    with_gate, without = (objective(1.0, []).loss(one, statistic).loss for one in (gated, p))
    kl = (v - v.flip(1)).square().mean(1)
    assert (without - with_gate).tolist() == pytest.approx([0, 0.5 * float(kl[1]), 0], abs=1e-6)


def test_wrong_scales_of_an_objective_are_named() -> None:
    class Negative(RegularizedDgpo):
        def kl_scales(self, groups: ScoredGroups) -> torch.Tensor | None:
            return -torch.ones_like(groups.rewards)

    made = Negative(ObjectiveSection(), RegularizedDgpoOptions())
    with pytest.raises(PluginError, match=r"Negative: `kl_scales` must return one finite factor >= 0 per member"):
        kl_scales(made, scored_groups(torch.ones(2, 3).double(), torch.ones(2, 3).bool()))


def configured(tmp_path: Path, name: str, share: float | None, kl: float = 0.5, weight: float = 0.0) -> RunConfig:
    run = {"name": name, "output": str(tmp_path), "iterations": 3, "seed": 3, "device": "cpu", "threads": 1}
    options: dict[str, Any] = {} if share is None else {"kl_uncertain": share}
    section = {"use": "regularized-dgpo", "kl": kl, "options": options}
    data = run_data(tmp_path, objective=section)
    data["rewards"] = [*data["rewards"], data["rewards"][0] | {"name": "other", "weight": weight}]
    return RunConfig.model_validate(data | {"run": run})


def test_in_a_run(registry: Registry, tmp_path: Path) -> None:
    """A gate that lets all through changes nothing; one that is narrow changes the weights."""
    weights = {}
    for name, share in (("none", None), ("all", 1.0), ("few", 0.1)):
        config = configured(tmp_path, name, share)
        Trainer(config, registry).train()
        weights[name] = (run_path(config) / "checkpoints/000003/weights.safetensors").read_bytes()
        assert len((run_path(config) / "metrics.jsonl").read_text().splitlines()) == 3
    assert weights["none"] == weights["all"]
    assert weights["none"] != weights["few"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.0}, "compares with rewards of weight 0, of which the run has none"),
        ({"kl": 0.0}, "kl_uncertain has no effect because objective.kl is 0"),
    ],
)
def test_what_has_no_effect_is_refused(
    registry: Registry, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(configured(tmp_path, "run", 0.1, **change), registry).build()
