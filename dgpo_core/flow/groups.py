"""Compute advantages and signed weights from rewards, on small float64 tensors on the CPU.

g groups, G members per group: rewards [g, G]; scored bool [g, G]. Members that are not scored are ignored and get 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dgpo_core.contracts.weighting import WeighedGroup
from dgpo_core.errors import PluginError
from dgpo_core.types import Prompt, ScoredGroups, TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import AdvantageWeighting, Objective
    from dgpo_schemas.sections.rewards import AdvantagesSection

__all__ = [
    "LARGEST",
    "advantages",
    "aggregate",
    "by_source",
    "compute_advantages",
    "informative",
    "pairwise_distances",
    "ranks",
    "signed_weights",
]

LARGEST = 1e100
"""Largest magnitude of a valid score: weighted squares and their sums stay far below the float64 maximum."""


def aggregate(
    values: Tensor,
    weights: Sequence[float],
    how: Literal["weighted-sum", "group-normalized"],
    epsilon: float,
    transforms: Sequence[Literal["rank"] | None] = (),
) -> tuple[Tensor, Tensor]:
    """Combine several rewards into (rewards [g, G], scored [g, G]); rewards are 0 where not scored.

    values: float64 [r, g, G] of r rewards, nan where missing. A member with a missing value, or with one larger in
    magnitude than LARGEST, is not scored.
    how: `weighted-sum` sums weight * value. `group-normalized` first normalizes each reward to (value - mean) / (std +
    epsilon) over the scored members of each group, so that rewards of different scales contribute equally (GDPO, arXiv
    2601.05242); a reward that is equal for all members contributes 0.
    transforms: of each reward, applied first: `rank` replaces its values by their `ranks`. Empty for none.
    """
    scored = (values.abs() <= LARGEST).all(0)  # nan is not
    if any(transforms):
        pairs = zip(values, transforms, strict=True)
        values = torch.stack([ranks(reward, scored) if transform else reward for reward, transform in pairs])
    if how == "group-normalized":
        values = torch.stack([_normalized(reward, scored, epsilon) for reward in values])
    total = torch.stack([weight * reward for weight, reward in zip(weights, values, strict=True)]).sum(0)
    return total.masked_fill(~scored, 0.0), scored


def ranks(reward: Tensor, scored: Tensor) -> Tensor:
    """Replace the values [g, G] of one reward by ranks in [0, 1): (r - 1) / n, 0 where not scored.

    n is the number of scored members of the group, and r the rank of a member among them, 1 for the lowest value;
    members of equal value share the mean of their ranks (0.0 equals -0.0). All values are multiples of 1 / (2n), so
    equal ones are identical, in any order of the members.
    """
    below, equal = reward[:, None, :] < reward[:, :, None], reward[:, None, :] == reward[:, :, None]
    others = scored[:, None, :]
    before = (below & others).sum(2) + ((equal & others).sum(2) - 1).to(reward.dtype) / 2
    return (before / scored.sum(1, keepdim=True).clamp(min=1)).masked_fill(~scored, 0.0)


def _normalized(reward: Tensor, scored: Tensor, epsilon: float) -> Tensor:
    count = scored.sum(1, keepdim=True).clamp(min=1)
    kept = reward.masked_fill(~scored, 0.0)
    centered = (kept - kept.sum(1, keepdim=True) / count).masked_fill(~scored, 0.0)
    std = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return (centered / (std + epsilon)).masked_fill(~informative(reward, scored)[:, None], 0.0)


def informative(rewards: Tensor, scored: Tensor) -> Tensor:
    """Return a mask bool [g] of groups with at least two scored members whose rewards are not all equal.

    Compares the rewards instead of testing std > 0: the mean of equal numbers can differ from them by rounding, and
    dividing the difference by epsilon would yield a false advantage.
    """
    high = rewards.masked_fill(~scored, -torch.inf).amax(1)
    low = rewards.masked_fill(~scored, torch.inf).amin(1)
    return (scored.sum(1) >= 2) & (high > low)


def advantages(rewards: Tensor, scored: Tensor, section: AdvantagesSection) -> Tensor:
    """Compute group-relative advantages (r - mean_g) / (std + epsilon), clamped; 0 where not scored or not informative.

    std is the population standard deviation of the group, or of all scored members of the iteration (`std: batch`).
    Example: rewards [10, 8, 5, 5] -> [1.4141, 0.4714, -0.9428, -0.9428].
    """
    use = scored & informative(rewards, scored)[:, None]
    values = rewards.masked_fill(~scored, 0.0)
    count = scored.sum(1, keepdim=True).clamp(min=1)
    centered = (values - values.sum(1, keepdim=True) / count).masked_fill(~scored, 0.0)
    if section.std == "group":
        centered = centered / ((centered.square().sum(1, keepdim=True) / count).sqrt() + section.epsilon)
    elif section.std == "batch":
        batch = rewards[scored]
        std = batch.std(correction=0) if batch.numel() else torch.zeros((), dtype=rewards.dtype)
        centered = centered / (std + section.epsilon)
    return centered.clamp(-section.clamp, section.clamp).masked_fill(~use, 0.0)


def signed_weights(
    advantage: Tensor,
    rewards: Tensor,
    scored: Tensor,
    weighting: AdvantageWeighting,
    *,
    balance: bool = False,
    per_reward: Mapping[str, Tensor] | None = None,
    distances: Tensor | None = None,
) -> Tensor:
    """Compute signed weights [g, G]: c_i = +w_i where A_i > 0 (G+), -w_i where A_i <= 0 (G-).

    c_i is 0 where not scored or not informative. With `balance`, both sides of a group are scaled to the mean of their
    sums, so that sum_i c_i = 0 and the partition function cancels for any weighting; a group with a side of total
    weight 0 gets all zeros. per_reward: label to [g, G]; distances: [g, G, G]; see `WeighedGroup`. Raises PluginError
    if the weighting returns a wrong shape or a negative or non-finite weight.
    """
    signed = torch.zeros_like(advantage)
    for row in informative(rewards, scored).nonzero().flatten().tolist():
        members = scored[row]
        a = advantage[row, members]
        weights = weighting.group_weights(
            WeighedGroup(
                a,
                rewards[row, members],
                {label: values[row, members] for label, values in (per_reward or {}).items()},
                None if distances is None else distances[row][members][:, members],
            )
        )
        if weights.shape != a.shape or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise PluginError(
                f"weighting {type(weighting).__name__} must return one finite weight >= 0 per member: "
                f"for {tuple(a.shape)} advantages it returned {weights.tolist()} of shape {tuple(weights.shape)}"
            )
        weights = _balanced(weights, a > 0) if balance else weights
        signed[row, members] = torch.where(a > 0, weights, -weights).to(signed.dtype)
    return signed


def _balanced(weights: Tensor, better: Tensor) -> Tensor:
    sides = torch.stack([weights[better].sum(), weights[~better].sum()])
    if not bool((sides > 0).all()):
        return torch.zeros_like(weights)
    return weights * torch.where(better, sides.mean() / sides[0], sides.mean() / sides[1])


def by_source(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Return the indices of the groups of each prompt source, by source name. Sources are normalized separately."""
    indices: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        indices.setdefault(prompt.source, []).append(index)
    return indices


def compute_advantages(
    groups: ScoredGroups,
    section: AdvantagesSection,
    weighting: AdvantageWeighting,
    objective: Objective | None = None,
) -> TrainingBatch:
    """Compute the training batch of scored groups: advantages, signed weights, the residual |sum_i c_i|, and the
    objective's factors of the KL terms."""
    advantage = torch.zeros_like(groups.rewards)
    for rows in by_source(groups.prompts).values():
        advantage[rows] = advantages(groups.rewards[rows], groups.scored[rows], section)
    signed = signed_weights(
        advantage, groups.rewards, groups.scored, weighting, balance=section.balance,
        per_reward=groups.per_reward, distances=groups.distances,
    )  # fmt: skip
    return TrainingBatch(
        prompts=groups.prompts,
        x0=groups.x0,
        own=groups.own,
        advantages=advantage,
        signed_weights=signed,
        scored=groups.scored,
        residual=signed.sum(1).abs(),
        paths=groups.paths,
        kl_scales=None if objective is None else _kl_scales(objective, groups),
    )


def _kl_scales(objective: Objective, groups: ScoredGroups) -> Tensor | None:
    """Return the objective's factors of the members' KL terms, float64 [g, G], or None. Raises PluginError for a wrong
    shape, or a factor that is negative or not finite."""
    scales = objective.kl_scales(groups)
    if scales is None:
        return None
    if scales.shape != groups.rewards.shape or not bool((scales.isfinite() & (scales >= 0)).all()):
        raise PluginError(
            f"objective {type(objective).__name__}: `kl_scales` must return one finite factor >= 0 per member, of "
            f"shape {tuple(groups.rewards.shape)}, or None; it returned one of shape {tuple(scales.shape)}"
        )
    return scales


def pairwise_distances(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root-mean-square differences between members, [g, G, G], of features [g, G, D], and the mean over the
    pairs of each group, [g].

    In [0, 1] for pixels in [0, 1]; 0 if all members are equal.
    """
    members, width = features.shape[1:]
    # The matrix-multiplication mode of cdist is inaccurate for nearly equal members.
    distances = torch.cdist(features.float(), features.float(), compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum((1, 2)) / (max(members * (members - 1), 1) * math.sqrt(width))
    return distances / math.sqrt(width), mean
