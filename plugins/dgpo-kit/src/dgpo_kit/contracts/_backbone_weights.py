"""Checks of backbones: weights that the engine can exchange, and exported adapters."""

from __future__ import annotations

import contextlib
import re
import tempfile
import unittest
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dgpo_kit.contracts._assertions import close, equal, that

if TYPE_CHECKING:
    from dgpo_kit.contracts._backbone_subject import Subject

__all__ = ["adapter", "formats", "merged", "save_adapter", "save_weights", "weights"]


def weights(s: Subject) -> None:
    """The velocity uses the current `parameter.data`, which the engine replaces to switch between models."""
    before = s.velocity()
    with s.moved_weights():
        moved = s.velocity()
        that(not torch.equal(moved, before), "velocity must use the trained weights after `parameter.data` is replaced")
    equal(s.velocity(), before, "velocity must be the same again after the weights are restored")


def adapter(s: Subject) -> None:
    """The trained parameters are those of the adapter; `off` disables it within the block."""
    enabled = "the adapter must be enabled again after `off`, also after an error"
    parameters, trained = s.adapter.parameters(), s.backbone.trainable()
    same = {id(p) for p in parameters.values()} == {id(p) for p in trained.values()}
    that(same, "`trainable` must return the adapter's parameters")
    that(list(parameters) == list(s.adapter.parameters()), "the names of the adapter's parameters must not change")
    with s.moved_weights():
        moved = s.velocity()
        base = s.base_velocity()
        equal(s.velocity(), moved, enabled)
        with contextlib.suppress(KeyError), s.adapter.off():
            raise KeyError
        equal(s.velocity(), moved, enabled)
        with s.adapter.off():
            s.base_velocity()
            equal(s.velocity(), base, "the adapter must stay disabled after a nested `off`")
    equal(s.base_velocity(), base, "without its adapter the model must not depend on the trained weights")
    that(not torch.equal(base, moved), "without its adapter the model must return other velocities")
    close(s.velocity(), base, "a new adapter must not change the velocity", s.tolerance)


def merged(s: Subject) -> None:
    """`merged` does not change the velocity, and restores all weights after the block."""
    with s.moved_weights():
        context = s.adapter.merged()
        if context is None:
            raise unittest.SkipTest("its adapter cannot be merged")
        kept = [(parameter, parameter.data.clone()) for parameter in s.backbone.module.parameters()]
        before = s.velocity()
        with context:
            inside = s.velocity()
        close(inside, before, "velocity must be the same with the adapter merged", s.tolerance)
        with contextlib.suppress(KeyError), s.adapter.merged() or contextlib.nullcontext():
            raise KeyError
        for parameter, data in kept:
            equal(parameter.data, data, "weights must be restored bit for bit after `merged`, also after an error")
        equal(s.velocity(), before, "the adapter must be enabled again after `merged`, also after an error")


def save_adapter(s: Subject) -> None:
    """`save` writes the default format and does not change the velocity."""
    that(s.adapter.formats, "`formats` must not be empty")
    _saved(s, "the adapter's `save`", partial(s.adapter.save, format=s.adapter.formats[0]))


def formats(s: Subject) -> None:
    """`save` writes every other format; format names are unique and valid."""
    names = s.adapter.formats
    that(len(set(names)) == len(names), f"`formats` must be unique, got {', '.join(names)}")
    for name in names:
        valid = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        that(valid, f"the name of a format must consist of a-z, 0-9 and single hyphens, got {name!r}")
    for name in names[1:]:
        _saved(s, f"the adapter's `save` as {name}", partial(s.adapter.save, format=name))


def save_weights(s: Subject) -> None:
    """Without an adapter, `save_weights` writes the weights and does not change the velocity."""
    if s.backbone.adapter is not None:
        raise unittest.SkipTest("only the adapter is trained")
    _saved(s, "`save_weights`", s.backbone.save_weights)


def _saved(s: Subject, what: str, save: Callable[[Path], None]) -> None:
    before = s.velocity()
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "new"
        for _ in range(2):  # the second time, the directory exists
            save(target)
            that(any(file.is_file() for file in target.rglob("*")), f"{what} must write at least one file")
    equal(s.velocity(), before, f"{what} must not change the velocity")
