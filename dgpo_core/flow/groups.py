"""From rewards to signed weights: pure mathematics on small float64 tensors on the CPU.

Legend: g groups, G members. rewards [g, G]; scored bool [g, G]. What is not scored takes no part and gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dgpo_core.errors import PluginError
from dgpo_core.types import Prompt, ScoredGroups, TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import AdvantageWeighting
    from dgpo_schemas.sections.rewards import AdvantagesSection

__all__ = [
    "LARGEST",
    "advantages",
    "aggregate",
    "by_source",
    "compute_advantages",
    "informative",
    "mean_pairwise_distance",
    "signed_weights",
]

LARGEST = 1e100
"""Size up to which a number is taken for a score: weighted, squared and summed it is far from float64's limit."""


def aggregate(
    values: Tensor, weights: Sequence[float], how: Literal["weighted-sum", "group-normalized"], epsilon: float
) -> tuple[Tensor, Tensor]:
    """Several rewards as one: (rewards [g, G], scored [g, G]); rewards are 0 where not scored.

    values float64 [r, g, G] of r rewards, nan where missing: a member that lacks one of them, or has one larger than
    LARGEST, is not scored.
    `weighted-sum` adds weight * value. `group-normalized` first makes each reward (value - mean) / (std + epsilon)
    within its group, over the scored members, so that no reward's scale drowns another's (GDPO, arXiv
    2601.05242); a reward that is equal for all of them adds nothing.
    """
    scored = (values.abs() <= LARGEST).all(0)  # nan is not
    if how == "group-normalized":
        values = torch.stack([_normalized(reward, scored, epsilon) for reward in values])
    total = torch.stack([weight * reward for weight, reward in zip(weights, values, strict=True)]).sum(0)
    return total.masked_fill(~scored, 0.0), scored


def _normalized(reward: Tensor, scored: Tensor, epsilon: float) -> Tensor:
    count = scored.sum(1, keepdim=True).clamp(min=1)
    kept = reward.masked_fill(~scored, 0.0)
    centered = (kept - kept.sum(1, keepdim=True) / count).masked_fill(~scored, 0.0)
    std = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return (centered / (std + epsilon)).masked_fill(~informative(reward, scored)[:, None], 0.0)


def informative(rewards: Tensor, scored: Tensor) -> Tensor:
    """bool [g]: groups with at least two scored members whose rewards are not all equal.

    Equality is tested on the rewards themselves: a mean of equal numbers may differ from them by rounding, and that
    difference over a std of epsilon would be taken for an advantage.
    """
    high = rewards.masked_fill(~scored, -torch.inf).amax(1)
    low = rewards.masked_fill(~scored, torch.inf).amin(1)
    return (scored.sum(1) >= 2) & (high > low)


def advantages(rewards: Tensor, scored: Tensor, section: AdvantagesSection) -> Tensor:
    """Group-relative advantages (r - mean_g) / (std + epsilon), clamped; 0 where not scored or not informative.

    The std is the population's, of the group or of all scored members of the iteration (`std: batch`).
    Worked example: rewards [10, 8, 5, 5] -> [1.4141, 0.4714, -0.9428, -0.9428].
    """
    use = scored & informative(rewards, scored)[:, None]
    values = rewards.masked_fill(~scored, 0.0)
    count = scored.sum(1, keepdim=True).clamp(min=1)
    centered = (values - values.sum(1, keepdim=True) / count).masked_fill(~scored, 0.0)
    if section.std == "group":
        centered = centered / ((centered.square().sum(1, keepdim=True) / count).sqrt() + section.epsilon)
    elif section.std == "batch":
        everything = rewards[scored]
        std = everything.std(correction=0) if everything.numel() else torch.zeros((), dtype=rewards.dtype)
        centered = centered / (std + section.epsilon)
    return centered.clamp(-section.clamp, section.clamp).masked_fill(~use, 0.0)


def signed_weights(
    advantage: Tensor, rewards: Tensor, scored: Tensor, weighting: AdvantageWeighting, *, balance: bool = False
) -> Tensor:
    """c_i = +w_i where A_i > 0 and -w_i where A_i <= 0 (ALGORITHM: G+ and G-); 0 where not scored or informative.

    With `balance` the two sides of a group are scaled to the mean of their sums, so that sum_i c_i = 0 and
    the partition function cancels whatever the weighting; a group with a side of weight 0 gets 0 throughout.
    Raises PluginError if the weighting returns another shape, a negative or a non-finite weight.
    """
    signed = torch.zeros_like(advantage)
    for row in informative(rewards, scored).nonzero().flatten().tolist():
        members = scored[row]
        a = advantage[row, members]
        weights = weighting.weights(a, rewards[row, members])
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
    """The numbers of the groups [g] of each source, by its name. Nothing is compared between sources."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        found.setdefault(prompt.source, []).append(number)
    return found


def compute_advantages(
    groups: ScoredGroups, section: AdvantagesSection, weighting: AdvantageWeighting
) -> TrainingBatch:
    """The phase: scored groups to a training batch, with the residual |sum_i c_i| of each group."""
    advantage = torch.zeros_like(groups.rewards)
    for rows in by_source(groups.prompts).values():
        advantage[rows] = advantages(groups.rewards[rows], groups.scored[rows], section)
    signed = signed_weights(advantage, groups.rewards, groups.scored, weighting, balance=section.balance)
    return TrainingBatch(
        prompts=groups.prompts,
        x0=groups.x0,
        own=groups.own,
        advantages=advantage,
        signed_weights=signed,
        scored=groups.scored,
        residual=signed.sum(1).abs(),
        paths=groups.paths,
    )


def mean_pairwise_distance(features: Tensor) -> Tensor:
    """Diversity [g] of features [g, G, D]: mean over pairs of members of the root-mean-square difference.

    For pixels in [0, 1] it lies in [0, 1]; 0 means that all members are the same image.
    """
    members, width = features.shape[1:]
    if members < 2:
        return torch.zeros(len(features), device=features.device)
    # The exact product form: the matrix-product shortcut of cdist loses digits for members that are nearly equal.
    distances = torch.cdist(features.float(), features.float(), compute_mode="donot_use_mm_for_euclid_dist")
    total: Tensor = distances.sum((1, 2))
    return total / (members * (members - 1) * math.sqrt(width))
