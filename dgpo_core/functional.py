"""The objective on plain tensors, for training loops of your own: interpolation, advantages, weights and the loss.

Everything here calls the code that `dgpo train` runs, so a loop of your own computes the same numbers.

Time: sigma is flow-matching time in [0, 1], 1 is noise and 0 is data; x_sigma = (1 - sigma) * x0 + sigma * noise.
Legend: g groups (one prompt each), G members (samples of that prompt), N = g * G samples, group after group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dgpo_core.config.settings import checked_section
from dgpo_core.errors import UserError
from dgpo_core.flow import groups as _groups
from dgpo_core.flow.preference import (
    group_means,
    group_sums,
    outside_clip,
    preference_terms,
    statistic_shares,
    with_kl,
)
from dgpo_core.flow.velocity import interpolate, velocity_target
from dgpo_core.transfers import in_float64
from dgpo_core.types import mean_square, weighted
from dgpo_schemas.base import UseBlock
from dgpo_schemas.sections.rewards import AdvantagesSection
from dgpo_schemas.sections.training import ObjectiveSection

if TYPE_CHECKING:
    from dgpo_core.contracts import AdvantageWeighting

__all__ = ["advantages", "group_preference_loss", "interpolate", "signed_weights", "velocity_target"]


def advantages(
    rewards: Tensor, *, std: Literal["group", "batch", "none"] = "group", clamp: float = 5.0, epsilon: float = 1e-4
) -> Tensor:
    """Group-relative advantages, (reward - mean of the group) / (std + epsilon), clamped to [-clamp, clamp].

    Args:
        rewards: [g, G], or [G] for one group; higher is better. A reward that is not finite is missing: its member
            takes no part and gets 0.
        std: the population standard deviation of each group ("group"), of all rewards ("batch"), or none.
        clamp: largest absolute value, above 0.
        epsilon: added to the standard deviation, above 0.

    Returns:
        float64, of the shape and on the device of `rewards` (of those on MPS, which has no float64, on the CPU). Groups
        whose rewards are all equal get zeros.

    Raises:
        UserError: for rewards of another shape, and for values that an argument cannot have.

    Source: arXiv 2510.08425; group normalization as in GRPO (arXiv 2402.03300).
    """
    section = checked_section(AdvantagesSection, std=std, clamp=clamp, epsilon=epsilon)
    rows, scored = _rows(rewards)
    return _groups.advantages(rows, scored, section).view(rewards.shape)


def signed_weights(
    advantages: Tensor,
    rewards: Tensor,
    weighting: str | AdvantageWeighting = "abs-advantage",
    options: Mapping[str, Any] | None = None,
    *,
    balance: bool = False,
    distances: Tensor | None = None,
) -> Tensor:
    """Signed weights c = +w where the advantage is above 0, and -w elsewhere.

    Args:
        advantages: [g, G] or [G], as `advantages` returns them.
        rewards: of the same shape; members whose reward is not finite get 0.
        weighting: the name of a weighting as in a run file ("abs-advantage" is the paper's: w = |A|, so c = A), or an
            `AdvantageWeighting`.
        options: of a weighting that is named, such as {"k": 2} of "top-k".
        balance: scale the two sides of each group to the same sum, so that the partition function cancels.
        distances: [g, G, G] or [G, G], between the media of each pair of members, for a weighting that looks at them,
            such as "diverse"; without them, all media count as equally different.

    Returns:
        float64, of the shape and on the device of `advantages` (of those on MPS on the CPU).

    Raises:
        UserError: for shapes that differ, an advantage that is not finite though its reward is, an unknown weighting,
            or options that it refuses.
    """
    _check_tensors(advantages=advantages, rewards=rewards)
    if advantages.shape != rewards.shape:
        raise UserError(
            f"advantages and rewards must have one shape; they have {tuple(advantages.shape)} and "
            f"{tuple(rewards.shape)}"
        )
    from dgpo_core.plugins.registry import get_registry

    rows, scored = _rows(rewards)
    _check_finite("advantages", advantages, scored, "")
    if isinstance(weighting, str):
        made: AdvantageWeighting = get_registry().create(
            "weighting", UseBlock(use=weighting, options=dict(options or {}))
        )
    elif options:
        raise UserError("options: belong to a weighting that is given by its name")
    else:
        made = weighting
    pairs = None
    if distances is not None:
        _check_tensors(distances=distances)
        wanted = (*advantages.shape, advantages.shape[-1])
        if distances.shape != wanted:
            raise UserError(f"distances must be {wanted}, one for each pair of members, not {tuple(distances.shape)}")
        _check_finite("distances", distances, torch.ones_like(distances, dtype=torch.bool), "")
        pairs = in_float64(distances).cpu().view(*rows.shape, rows.shape[1])
    found = _groups.signed_weights(_rows(advantages)[0], rows, scored, made, balance=balance, distances=pairs)
    return found.view(advantages.shape)


def group_preference_loss(
    prediction: Tensor,
    reference: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    beta: float = 100.0,
    old: Tensor | None = None,
    clip: float | None = None,
    base: Tensor | None = None,
    kl: float = 0.0,
    clip_kl: bool = False,
    advantages: Tensor | None = None,
    scored: Tensor | None = None,
    loss_weight: Tensor | None = None,
) -> Tensor:
    """The loss of Direct Group Preference Optimization at one time sigma per sample, ready for `backward`.

    With dsm = mean (prediction - target)^2 of each sample and c its signed weight, S_g = beta / G * sum of
    c * (dsm - dsm_reference) over a group. The loss is the mean over groups and members of
    stopgrad(sigmoid(S_g)) * c * dsm, whose gradient is that of -log sigmoid(-S_g) / beta; its value is not that of the
    logarithm. Whole groups must be in one call: S_g needs every member.

    Args:
        prediction: velocities of the policy at x_sigma, with gradient, [N, ...] with N = g * G, group after group.
        reference: velocities of the reference model (the frozen model, or a moving average), of the same shape.
        target: `velocity_target(x0, noise)`, of the same shape.
        weights: signed weights [g, G], or [G] for one group, as `signed_weights` returns them.
        beta: scale of the group preference in its sigmoid, above 0.
        old: velocities of the old policy, for the PPO-style clip; given with `clip`.
        clip: members whose ratio exp(dsm_old - dsm) has left [1 - clip, 1 + clip] in the direction in which they are
            pushed give no gradient; in (0, 1). None leaves it out.
        base: velocities of the frozen base model, for the KL term; given with `kl`.
        kl: weight of the KL term, mean (prediction - base)^2; 0 leaves it out.
        clip_kl: let clipped members give no gradient of the KL term either.
        advantages: [g, G], whose signs tell the direction of the clip; by default the signs of `weights`.
        scored: bool [g, G], False for members that are missing, which take no part; by default all take part.
        loss_weight: [N], a factor of squared errors (1 for flow models).

    Returns:
        A scalar, in the dtype of `prediction`, or float32 for half precision.

    Raises:
        UserError: for shapes that do not fit, arguments that belong together, and values that they cannot have, such
            as a weight of a scored member that is not finite.

    Source: arXiv 2510.08425.
    """
    checked_section(ObjectiveSection, beta=beta, kl=kl, clip=clip)
    _check_tensors(prediction=prediction, reference=reference, target=target, weights=weights)
    optional = {"old": old, "base": base, "advantages": advantages, "scored": scored, "loss_weight": loss_weight}
    _check_tensors(**{name: value for name, value in optional.items() if value is not None})
    _check_together(old=(old, clip is not None, "clip"), base=(base, kl > 0, "kl"))
    given = {"reference": reference, "target": target, "old": old, "base": base}
    _check_shapes(prediction, weights, given, {"advantages": advantages, "scored": scored}, loss_weight)

    use = torch.ones(weights.shape, dtype=torch.bool) if scored is None else scored.bool()
    use = (use if use.dim() == 2 else use[None]).to(prediction.device)
    for name, value in {"weights": weights, "advantages": advantages, "loss_weight": loss_weight}.items():
        if value is not None:
            _check_finite(name, value, use, "; for missing rewards pass scored=torch.isfinite(rewards)")
    dtype = torch.float32 if prediction.dtype in (torch.float16, torch.bfloat16) else prediction.dtype
    rows = (use & (use.sum(1, keepdim=True) >= 2)).flatten().nonzero().flatten()  # no preference among fewer than two
    if not len(rows):
        return prediction.flatten()[:0].sum(dtype=dtype)  # 0 whatever the values are, with gradient 0

    def member(values: Tensor) -> Tensor:
        return values.to(prediction.device, dtype).flatten()[rows]

    def error(one: Tensor, other: Tensor) -> Tensor:
        return weighted(mean_square(one[rows] - other[rows]), None if loss_weight is None else member(loss_weight))

    c, size = member(weights), member(use.sum(1, keepdim=True).expand(use.shape))
    better = (c if advantages is None else member(advantages)) > 0
    group = torch.arange(len(use), device=rows.device).repeat_interleave(use.shape[1])[rows]
    dsm, still = error(prediction, target), error(prediction.detach(), target)
    split_samples = statistic_shares(still, error(reference, target).detach(), c, size, beta)
    statistic = group_sums(split_samples, (group[:, None] == group).to(dtype))
    clipped = None if old is None or clip is None else outside_clip(dsm, error(old, target).detach(), better, clip)
    loss, _ = preference_terms(dsm, c, statistic, clipped)
    if base is not None:
        loss = with_kl(loss, error(prediction, base.detach()), kl, clipped if clip_kl else None)
    return group_means(loss, size, len(use))


def _rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(float64 [g, G], bool [g, G]: whether they are scores). Raises UserError for another shape."""
    _check_tensors(rewards=values)
    if values.dim() not in (1, 2) or values.shape[-1] == 0:
        raise UserError(f"rewards must be [groups, members], or [members] of one group, not {tuple(values.shape)}")
    found = in_float64(values.detach())
    found = found if found.dim() == 2 else found[None]
    return found, found.abs() <= _groups.LARGEST


def _check_tensors(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} must be a tensor, not {type(value).__name__}")


def _check_finite(name: str, values: Tensor, scored: Tensor, hint: str) -> None:
    """Raise UserError, naming the first element, unless the values of all scored members are finite."""
    bad = (~values.isfinite()).to(scored.device).flatten() & scored.flatten()
    if bool(bad.any()):
        place = bad.view(values.shape).nonzero()[0]
        value = float(values[tuple(place.tolist())])
        raise UserError(f"{name}{place.tolist()}: must be finite, got {value}{hint}")


def _check_together(**pairs: tuple[Tensor | None, bool, str]) -> None:
    for name, (value, wanted, by) in pairs.items():
        if (value is not None) != wanted:
            raise UserError(f"{name} and {by} belong together: give both, or neither")


def _check_shapes(
    prediction: Tensor,
    weights: Tensor,
    like_prediction: Mapping[str, Tensor | None],
    like_weights: Mapping[str, Tensor | None],
    loss_weight: Tensor | None,
) -> None:
    """Raise UserError, naming the argument, for a shape that does not fit."""
    if prediction.dim() < 2 or not prediction.is_floating_point():
        dtype = str(prediction.dtype).removeprefix("torch.")
        raise UserError(
            f"prediction must be [samples, ...] of floating point numbers, not {tuple(prediction.shape)} of {dtype}"
        )
    if weights.dim() not in (1, 2) or weights.numel() != len(prediction):
        raise UserError(
            f"weights must be [groups, members] with one weight for each of the {len(prediction)} predictions, not "
            f"{tuple(weights.shape)}"
        )
    for name, value in like_prediction.items():
        if value is not None and value.shape != prediction.shape:
            raise UserError(
                f"{name} must have the shape of prediction, {tuple(prediction.shape)}, not {tuple(value.shape)}"
            )
    for name, value in like_weights.items():
        if value is not None and value.shape != weights.shape:
            raise UserError(f"{name} must have the shape of weights, {tuple(weights.shape)}, not {tuple(value.shape)}")
    if loss_weight is not None and loss_weight.shape != (len(prediction),):
        raise UserError(f"loss_weight must be [{len(prediction)}], not {tuple(loss_weight.shape)}")
