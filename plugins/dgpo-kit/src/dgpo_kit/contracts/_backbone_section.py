"""Backbones: what the class says that it uses of its section."""

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING

import torch

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.weights import resolve_checkpoint
from dgpo_kit.contracts._assertions import close, that

if TYPE_CHECKING:
    from dgpo_kit.contracts._backbone_subject import Subject

__all__ = ["dtype", "gradient_checkpointing", "package"]


def dtype(s: Subject) -> None:
    """`backbone.dtype` is the type of frozen weights; velocities and what is trained stay float32."""
    other = "bfloat16" if s.backbone.section.dtype == "float32" else "float32"
    made = _with(s, "dtype", dtype=other)
    trained = {id(parameter) for parameter in made.trainable().values()}
    frozen = [p for p in made.module.parameters() if id(p) not in trained and p.is_floating_point()]
    if not frozen:
        raise unittest.SkipTest("every weight is trained")
    # Some models keep a few of them in float32, whatever is asked for.
    that(any(p.dtype == getattr(torch, other) for p in frozen), f"with `dtype: {other}` frozen weights are {other}")
    for name, parameter in made.trainable().items():
        that(parameter.dtype == torch.float32, f"{name} is float32, also with `dtype: {other}`")


def gradient_checkpointing(s: Subject) -> None:
    """With `backbone.gradient_checkpointing` activations are computed again, and the gradients are the same."""
    found = {}
    for on in (False, True):
        made = _with(s, "gradient_checkpointing", gradient_checkpointing=on)
        calls = _Calls(made.module)
        made.velocity(*s.arguments()).square().sum().backward()  # type: ignore[no-untyped-call]
        found[on] = calls.count, {name: p.grad for name, p in made.trainable().items()}
    again = "with `gradient_checkpointing: true` modules of the network are called again for the backward pass"
    that(found[True][0] > found[False][0], again)
    for name, gradient in found[True][1].items():
        plain = found[False][1][name]
        that((gradient is None) == (plain is None), f"{name} has a gradient with gradient_checkpointing if without it")
        if gradient is not None and plain is not None:
            close(gradient, plain, f"the gradient of {name} is the same with gradient_checkpointing", s.tolerance)


class _Calls:
    """Counts the calls of a network's modules."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.count = 0
        for module in network.modules():
            module.register_forward_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        self.count += 1


def package(s: Subject) -> None:
    """`checkpoint: package:NAME/path` is looked up among the files of installed plugins."""
    wanted = "package:dgpo_no_such_package/model"
    try:
        resolve_checkpoint(wanted)
    except UserError as error:
        said = str(error)
    try:
        _with(s, "checkpoint", checkpoint=wanted)
    except UserError as error:
        that(said in str(error), f"a checkpoint {wanted} is resolved by dgpo_core.weights, which says: {said}")
    else:
        that(False, f"a checkpoint {wanted} is a UserError, or `uses` has no checkpoint")


def _with(s: Subject, key: str, **settings: object) -> Backbone:
    """The same backbone with other settings of its section. SkipTest if it does not use that key."""
    backbone = s.backbone
    if key not in backbone.uses:
        raise unittest.SkipTest(f"it does not use backbone.{key}")
    return type(backbone)(backbone.section.model_copy(update=settings), backbone.options, device=backbone.device)
