"""Backbones: weights that the engine can exchange, and adapters that it writes."""

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
    """The engine exchanges them through `parameter.data`."""
    before = s.velocity()
    with s.moved_weights():
        moved = s.velocity()
        that(not torch.equal(moved, before), "velocity follows the trained weights where `parameter.data` is replaced")
    equal(s.velocity(), before, "velocity is as before with the weights from before")


def adapter(s: Subject) -> None:
    """What is trained is its own; it can be switched off, which shows the base, and is back afterwards."""
    back = "the adapter is back after `off`, also after an error"
    own, trained = s.adapter.parameters(), s.backbone.trainable()
    that({id(p) for p in own.values()} == {id(p) for p in trained.values()}, "`trainable` are the adapter's parameters")
    that(list(own) == list(s.adapter.parameters()), "the names of the adapter's parameters are always the same")
    with s.moved_weights():
        moved = s.velocity()
        base = s.base_velocity()
        equal(s.velocity(), moved, back)
        with contextlib.suppress(KeyError), s.adapter.off():
            raise KeyError
        equal(s.velocity(), moved, back)
        with s.adapter.off():
            s.base_velocity()
            equal(s.velocity(), base, "the adapter is still off after another `off` inside")
    equal(s.base_velocity(), base, "without its adapter the model does not depend on the trained weights")
    that(not torch.equal(base, moved), "without its adapter the model is another one")
    close(s.velocity(), base, "a new adapter changes nothing", s.tolerance)


def merged(s: Subject) -> None:
    """Merged, the adapter gives the same velocities; afterwards no weight has changed."""
    with s.moved_weights():
        context = s.adapter.merged()
        if context is None:
            raise unittest.SkipTest("its adapter cannot be merged")
        kept = [(parameter, parameter.data.clone()) for parameter in s.backbone.module.parameters()]
        before = s.velocity()
        with context:
            inside = s.velocity()
        close(inside, before, "velocity with the adapter merged is velocity with the adapter", s.tolerance)
        with contextlib.suppress(KeyError), s.adapter.merged() or contextlib.nullcontext():
            raise KeyError
        for parameter, data in kept:
            equal(parameter.data, data, "weights are bit for bit as before `merged`, also after an error")
        equal(s.velocity(), before, "the adapter is back after `merged`, also after an error")


def save_adapter(s: Subject) -> None:
    """In its usual format; nothing else changes."""
    that(s.adapter.formats, "an adapter has a format")
    _saved(s, "the adapter's `save`", partial(s.adapter.save, format=s.adapter.formats[0]))


def formats(s: Subject) -> None:
    """The others are written likewise."""
    names = s.adapter.formats
    that(len(set(names)) == len(names), f"formats are named once: {', '.join(names)}")
    for name in names:
        that(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), f"a format's name is of a-z, 0-9 and dashes, not {name!r}")
    for name in names[1:]:
        _saved(s, f"the adapter's `save` as {name}", partial(s.adapter.save, format=name))


def save_weights(s: Subject) -> None:
    """Without an adapter all weights are written, and nothing else changes."""
    if s.backbone.adapter is not None:
        raise unittest.SkipTest("the adapter alone is trained")
    _saved(s, "`save_weights`", s.backbone.save_weights)


def _saved(s: Subject, what: str, save: Callable[[Path], None]) -> None:
    before = s.velocity()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "new"
        for _ in range(2):  # the second time it is there already
            save(place)
            that(any(file.is_file() for file in place.rglob("*")), f"{what} writes something")
    equal(s.velocity(), before, f"{what} changes nothing")
