"""Checks of backbones: the keys of the section that the class declares in `uses`."""

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.weights import resolve_checkpoint
from dgpo_kit.contracts._assertions import close, that

if TYPE_CHECKING:
    from dgpo_kit.contracts._backbone_subject import Subject

__all__ = ["dtype", "fast", "gradient_checkpointing", "package"]

ROUNDED = 0.1
"""Relative difference of velocities that are computed in bfloat16 in two ways."""


def dtype(s: Subject) -> None:
    """`backbone.dtype` sets the dtype of frozen weights; velocities and trained parameters stay float32."""
    other = "bfloat16" if s.backbone.section.dtype == "float32" else "float32"
    made = _with(s, "dtype", dtype=other)
    trained = {id(parameter) for parameter in made.trainable().values()}
    frozen = [p for p in made.module.parameters() if id(p) not in trained and p.is_floating_point()]
    if not frozen:
        raise unittest.SkipTest("every weight is trained")
    # Some models keep a few weights in float32 for every setting.
    that(any(p.dtype == getattr(torch, other) for p in frozen), f"with `dtype: {other}` frozen weights must be {other}")
    for name, parameter in made.trainable().items():
        that(parameter.dtype == torch.float32, f"{name} must be float32, also with `dtype: {other}`")


def gradient_checkpointing(s: Subject) -> None:
    """`backbone.gradient_checkpointing` recomputes activations and does not change the gradients."""
    kept = s.backbone.section.gradient_checkpointing
    other = _with(s, "gradient_checkpointing", gradient_checkpointing=not kept)
    found = {kept: _gradients(s, s.backbone), not kept: _gradients(s, other)}
    requirement = "with `gradient_checkpointing: true` the backward pass must call modules of the network again"
    that(found[True][0] > found[False][0], requirement)
    for name, gradient in found[True][1].items():
        plain = found[False][1][name]
        requirement = f"the gradient of {name} must be the same with and without gradient_checkpointing"
        that((gradient is None) == (plain is None), requirement)
        if gradient is not None and plain is not None:
            close(gradient, plain, requirement, s.tolerance)


def _gradients(s: Subject, backbone: Backbone) -> tuple[int, dict[str, Tensor | None]]:
    """Return the number of calls of modules, and the gradients, which the backbone does not keep."""
    count = 0

    def increment(*_: object) -> None:
        nonlocal count
        count += 1

    hooks = [module.register_forward_pre_hook(increment) for module in backbone.module.modules()]
    backbone.velocity(*s.arguments()).square().sum().backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    gradients = {name: parameter.grad for name, parameter in backbone.trainable().items()}
    for parameter in backbone.trainable().values():
        parameter.grad = None
    return count, gradients


def package(s: Subject) -> None:
    """`checkpoint: package:NAME/path` refers to the files of an installed plugin."""
    missing = "package:dgpo_no_such_package/model"
    try:
        resolve_checkpoint(missing)
    except UserError as error:
        expected = str(error)
    try:
        _with(s, "checkpoint", checkpoint=missing)
    except UserError as error:
        that(expected in str(error), f"checkpoint {missing} must be resolved by dgpo_core.weights: {expected}")
    else:
        that(False, f"checkpoint {missing} must raise UserError, or `uses` must not contain checkpoint")


def fast(s: Subject) -> None:
    """`supports_fast`: `speed_up` changes velocities by roundings only, and uses new values of the adapter."""
    backbone = s.backbone
    if not backbone.supports_fast:
        raise unittest.SkipTest("it has no fast form")
    settings = {} if backbone.adapter is None else {"dtype": "bfloat16"}
    exact, made = (_with(s, "dtype", **settings) for _ in range(2))
    parts = backbone.supports_fast - ({"adapter"} if made.adapter is None else set())
    said = made.speed_up(sorted(parts))
    that(set(said) <= parts, "`speed_up` must return texts by the parts that it was given")
    for change in (0.0, 0.02):
        for one in (exact, made):
            with torch.no_grad():
                for parameter in one.trainable().values():
                    parameter.add_(change)
            if one.adapter is not None:
                one.adapter.weights_changed()
        found, expected = (one.velocity(*s.arguments()) for one in (made, exact))
        difference = float((found - expected).detach().norm() / expected.detach().norm())
        requirement = "must not change velocities by more than roundings"
        that(difference < ROUNDED, f"`speed_up` {requirement}: they differ by {difference:.2g}")
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in made.trainable().items():
        gradient = parameter.grad
        that(gradient is None or gradient.dtype == torch.float32, f"the gradient of {name} must be float32")
    that(any(p.grad is not None for p in made.trainable().values()), "`speed_up` must not cut off the gradient")


def _with(s: Subject, key: str, **settings: object) -> Backbone:
    """Build the same backbone with other settings of its section. Raises SkipTest if it does not use the key."""
    backbone = s.backbone
    if key not in backbone.uses:
        raise unittest.SkipTest(f"it does not use backbone.{key}")
    return type(backbone)(backbone.section.model_copy(update=settings), backbone.options, device=backbone.device)
