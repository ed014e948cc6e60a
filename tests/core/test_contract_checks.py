"""What a backbone gives that it must not: one message with the backbone and the promise, before a run is written where
that can be known, and never a run that learns something else."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import Backbone, Sampler
from dgpo_core.contracts.signatures import misfits
from dgpo_core.errors import PluginError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Conditioning, Schedule
from dgpo_kit.toy import ToyAdapter, ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
Says = dict[str, Any]
encode = ToyBackbone.encode
velocity = ToyBackbone.velocity


def rows(change: Callable[[Tensor], Conditioning]) -> Says:
    return {"encode": lambda self, prompts: change(encode(self, prompts).tensors["c"])}


def times(schedule: Any) -> Says:
    return {"schedule": lambda self, height, width, steps: schedule(steps)}


def weight(change: Callable[[Tensor], Any]) -> Says:
    return {"loss_weight": lambda self, sigma: change(sigma)}


def drawn(change: Callable[[Tensor], Any]) -> Says:
    return {"velocity": lambda self, x, sigma, conditioning: change(velocity(self, x, sigma, conditioning))}


def shown(change: Callable[[Tensor], Any]) -> Says:
    return {"decode": lambda self, x0: change(torch.zeros(len(x0), 3, 8, 8))}


def trained(change: Callable[[Any], Any]) -> Says:
    return {"trainable": lambda self: change(Backbone.trainable(self))}


def adapter(**says: Any) -> Says:
    return {"kind": type("Adapter", (ToyAdapter,), says)}


BEFORE: dict[str, tuple[Says, str]] = {
    "shift is text": (times(lambda n: Schedule(shift="3")), "plain numbers, got '3'"),  # type: ignore[arg-type]
    "terminal is text": (times(lambda n: Schedule(terminal="0")), "plain numbers"),  # type: ignore[arg-type]
    "grid of text": (times(lambda n: Schedule(grid=("1",) * n)), "plain numbers"),
    "no first": (times(lambda n: Schedule(first=None)), "plain numbers, got None"),  # type: ignore[arg-type]
    "range upside down": ({"sigma_range": (1.0, 0.0)}, "0 <= low < high <= 1, got (1.0, 0.0)"),
    "range of three": ({"sigma_range": (0.0, 0.5, 1.0)}, "`sigma_range` must be two numbers"),
    "range beyond": ({"sigma_range": (-1.0, 2.0)}, "`sigma_range` must be two numbers"),
    "start 0": ({"start": lambda self, sigma: 0}, "`start` at sigma 1 must be a positive number, got 0"),
    "start nan": ({"start": lambda self, sigma: math.nan}, "`start` at sigma 1"),
    "start of rows": ({"start": lambda self, sigma: torch.ones(3)}, "got a tensor (3,) of float32 on cpu"),
    "weight negative": (weight(torch.neg), "`loss_weight` must be finite, nonnegative"),
    "weight nan": (weight(lambda s: s * math.nan), "`loss_weight` must be finite"),
    "weight 0": (weight(torch.zeros_like), "not 0 at every time"),
    "weight of one": (weight(torch.mean), "`loss_weight` must be None or a tensor like sigma"),
    "weight a number": (weight(lambda s: 2.0), "got 2.0 (float)"),
    "weight float64": (weight(Tensor.double), "of float64 on cpu"),
    "weight elsewhere": (weight(lambda s: s.to("meta")), "of float32 on meta"),
    "weight with gradient": (weight(lambda s: s.clone().requires_grad_()), "with a gradient"),
    "fps 0": ({"fps": 0}, "`fps` must be a positive number"),
    "media": ({"media": "images"}, "`media` must be 'image' or 'video', got 'images'"),
    "shape a list": ({"latent_shape": lambda self, h, w: [2, 4, 4]}, "`latent_shape` of 8x8 must be a tuple"),
    "shape of fractions": ({"latent_shape": lambda self, h, w: (2, 4.0, 4)}, "`latent_shape` of 8x8"),
    "nothing trained": (trained(lambda found: {}), "no trainable parameters"),
    "trained a list": (trained(list), "`trainable` must return parameters by name"),
    "trained frozen": (
        trained(lambda found: {n: p.requires_grad_(False) for n, p in found.items()}),
        "does not require gradients",
    ),
    "trained strangers": (
        trained(lambda found: {n: torch.nn.Parameter(p.clone()) for n, p in found.items()}),
        "is not a parameter of `module`",
    ),
    "trained in half": (
        trained(lambda found: {n: torch.nn.Parameter(p.half()) for n, p in found.items()}),
        "must be float32, got torch.float16",
    ),
    "formats": (adapter(formats="toy"), "`adapter.formats` must be a tuple of names"),
    "truncated_prompts": (
        {"truncated_prompts": lambda self, prompts: ([10**6], 4)},
        "`truncated_prompts` must return indices",
    ),
}
"""What is seen when a run is built."""
DURING: dict[str, tuple[Says, str]] = {
    "bucket a list": ({"bucket": lambda self, prompt: []}, "must return a hashable, comparable value, got [] (list)"),
    "bucket random": ({"bucket": lambda self, prompt: random.random()}, "`bucket` must be deterministic"),
    "lengths too long": (rows(lambda c: Conditioning({"c": c}, {"c": (9,)})), "`lengths` of c must be (4,)"),
    "lengths too many": (rows(lambda c: Conditioning({"c": c}, {"c": (4, 4)})), "`lengths` of c must be (4,)"),
    "lengths of nothing": (rows(lambda c: Conditioning({"c": c}, {"d": (4,)})), "there is no such tensor"),
    "no tensors": (rows(lambda c: Conditioning({})), "`encode` must return a Conditioning with tensors"),
    "a dictionary": (rows(lambda c: {"c": c}), "`encode` must return a Conditioning"),  # type: ignore[arg-type,return-value]
    "two rows a prompt": (rows(lambda c: Conditioning({"c": c.repeat(2, 1)})), "c must have one row per prompt"),
    "rows with gradient": (rows(lambda c: Conditioning({"c": c.requires_grad_()})), "c must not require gradients"),
    "rows elsewhere": (rows(lambda c: Conditioning({"c": c.to("meta")})), "must be on the model's device cpu"),
    "ragged in secret": (
        rows(lambda c: Conditioning({"c": c, "x": torch.ones(1, int(100 * float(c[0, 0].abs())))})),
        "declare rows of different lengths in `Conditioning.lengths`",
    ),
    "unconditional of other tensors": (
        {"unconditional": lambda self, prompts: Conditioning({"d": torch.ones(len(prompts), 4)})},
        "`unconditional`: one prompt has the tensors c, another d",
    ),
    "guide of other shape": (
        {"guide": lambda self, c, u, scale, *, x_sigma, sigma: c[:1]},
        "`guide` must return float32 (2, 2, 4, 4), like x_sigma, got a tensor (1, 2, 4, 4)",
    ),
    "velocity broadcasts": (drawn(lambda v: v.mean(0, keepdim=True)), "`velocity` must return float32"),
    "velocity in bfloat16": (drawn(Tensor.bfloat16), "of bfloat16 on cpu"),
    "velocity without gradient": (drawn(Tensor.detach), "nothing would be learned"),
    "media of another size": (
        shown(lambda m: m[..., :2]),
        "`decode` must return images [B, 3, H, W] with B, H, W = 2, 8, 8",
    ),
    "media with alpha": (shown(lambda m: m[:, [0, 1, 2, 2]]), "`decode` must return images"),
    "media of one": (shown(lambda m: m[:1]), "`decode` must return images"),
    "media are bytes": (shown(Tensor.byte), "of uint8 on cpu"),
    "off is nothing": (adapter(off=lambda self: None), "`adapter.off` must return a context manager"),
    "encoding is nothing": ({"encoding": lambda self: None}, "`encoding` must return a context manager"),
}
"""What is seen when it is first asked."""


@pytest.mark.parametrize("case", [*BEFORE, *DURING])
def test_a_broken_promise_is_named(
    case: str, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    says, message = (BEFORE | DURING)[case]
    for name, value in says.items():
        monkeypatch.setattr(ToyBackbone, name, value)
    config = make_config(rollout={"shift": "auto", "guidance": 2.0})
    trainer = Trainer(config, registry)
    with pytest.raises(PluginError, match=re.escape(message)) as caught:
        trainer.build() if case in BEFORE else dry_run(trainer)
    assert "ToyBackbone" in str(caught.value)
    assert not run_path(config).exists()


def test_a_sound_one_is_left_in_peace(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyBackbone, "fps", 0.5)
    monkeypatch.setattr(ToyBackbone, "bucket", lambda self, prompt: ("a", prompt.size))
    monkeypatch.setattr(ToyBackbone, "start", lambda self, sigma: 1)
    monkeypatch.setattr(ToyBackbone, "loss_weight", lambda self, sigma: (1 - sigma) ** 2)
    dry_run(Trainer(make_config(rollout={"shift": "auto", "guidance": 2.0}), registry))


def test_methods_that_cannot_be_called_as_the_contracts_are_named() -> None:
    def fits(**says: Any) -> list[str]:
        return list(misfits(type("Own", (ToyBackbone,), says), Backbone))

    assert not fits()
    assert not fits(schedule=lambda self, *args: Schedule())
    assert not fits(guide=lambda self, a, b, c, **named: a)
    assert not fits(
        meta_model=classmethod(lambda cls, section, options: None), supports_guidance=False, fps=property(lambda s: 1)
    )
    (found,) = fits(schedule=lambda self, height, width: Schedule())
    assert found == "schedule(self, height, width) cannot be called as schedule(self, height, width, steps)"
    (found,) = fits(guide=lambda self, c, u, s: c)
    assert "cannot be called as guide(self, conditional, unconditional, guidance, *, x_sigma, sigma)" in found
    (found,) = fits(supports_guidance=lambda self: False)
    assert found.startswith("supports_guidance must be an attribute or a property")
    (found,) = fits(bucket=(8, 8))
    assert found == "bucket must be a method, got tuple"
    (found,) = misfits(type("Old", (Sampler,), {"sample": lambda self, velocity, noise, *, steps: None}), Sampler)
    assert found.startswith("sample(self, velocity, noise, *, steps) cannot be called")


def test_an_unconditional_row_may_have_another_length(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ragged(self: ToyBackbone, prompts: Any) -> Conditioning:
        return Conditioning.cat([
            Conditioning({**encode(self, [p]).tensors, "x": torch.ones(1, 1 + len(p.text))}, {"x": (1 + len(p.text),)})
            for p in prompts
        ])  # fmt: skip

    monkeypatch.setattr(ToyBackbone, "encode", ragged)
    monkeypatch.setattr(ToyBackbone, "unconditional", lambda self, prompts: ragged(
        self, [replace(p, text="") for p in prompts]
    ))  # fmt: skip
    dry_run(Trainer(make_config(rollout={"guidance": 2.0}), registry))
