"""Backbones: shapes, ranges, rows apart from each other, and weights that the engine can exchange."""

from __future__ import annotations

import contextlib
import math
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.flow.velocity import guided_velocity
from dgpo_core.plugins import contract_checks
from dgpo_core.types import Conditioning, Prompt, Schedule, same_places
from dgpo_kit.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_kit.contracts._backbone_section import dtype, gradient_checkpointing, package
from dgpo_kit.contracts._backbone_subject import Subject
from dgpo_kit.contracts._backbone_weights import adapter, formats, merged, save_adapter, save_weights, weights
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_kit.given import NeedsInput

__all__ = ["backbone_checks", "check_backbone"]

TEXTS = ("a red circle", "two blue squares on the left of a very long fence", "")
SIZES = ((64, 64), (32, 32), (16, 16), (8, 8), (128, 128), (256, 256), (512, 512))
"""Tried in this order where no size is given."""
SIDES = (45, 13, 7, 1)
"""Widths that few models can draw, tried where no impossible size is given."""


def check_backbone(
    make: Callable[[], Backbone],
    size: tuple[int, int],
    *,
    impossible: tuple[int, int] | None = None,
    texts: Sequence[str] = TEXTS,
    tolerance: float = 1e-4,
) -> None:
    """Shapes, dtypes and ranges; rows independent of their batch; views of the weights; nothing random.

    make: builds the backbone on the CPU, the same every time; size: (height, width) that it can draw; impossible: one
    that it cannot; tolerance: of one sample against the same in a batch.
    """
    run_all(backbone_checks(make, size, impossible=impossible, texts=texts, tolerance=tolerance))


def backbone_checks(
    make: Callable[[], Backbone],
    size: tuple[int, int] | None = None,
    *,
    impossible: tuple[int, int] | None = None,
    texts: Sequence[str] = TEXTS,
    tolerance: float = 1e-4,
) -> Iterator[Check]:
    """What a backbone promises; arguments as for `check_backbone`, without a size the first usual one is taken."""

    @cache
    def subject() -> Subject:
        backbone = make()
        return Subject(make, backbone, size or _possible(backbone), impossible, texts, tolerance)

    return checks_of(
        subject, trainable, latent_shape, times, prompts, encode, unconditional, velocity, batch_invariance, guide,
        gradient, weights,
        adapter, merged, save_adapter, formats, save_weights, decode, reproducible, random_state, dtype,
        gradient_checkpointing, package,
    )  # fmt: skip


def _possible(backbone: Backbone) -> tuple[int, int]:
    for size in SIZES:
        with contextlib.suppress(UserError):
            backbone.latent_shape(*size)
            return size
    raise NeedsInput(f"a size in pixels: it can draw none of {', '.join(f'{h}x{w}' for h, w in SIZES)}")


def trainable(s: Subject) -> None:
    """Float32 parameters of `module` with a gradient; everything else is frozen."""
    found = s.backbone.trainable()
    inside = {id(parameter) for parameter in s.backbone.module.parameters()}
    that(found, "something is trained")
    for name, parameter in found.items():
        that(parameter.dtype == torch.float32, f"{name} is float32")
        that(parameter.requires_grad, f"{name} requires a gradient")
        that(id(parameter) in inside, f"{name} is a parameter of `module`")
    trained = {id(parameter) for parameter in found.values()}
    for name, parameter in s.backbone.module.named_parameters():
        that(not parameter.requires_grad or id(parameter) in trained, f"{name} is frozen or in `trainable`")


def latent_shape(s: Subject) -> None:
    """Whole numbers; a size that cannot be drawn is a UserError."""
    shape = s.backbone.latent_shape(*s.size)
    that(shape and all(type(n) is int and n > 0 for n in shape), "a latent's shape is a tuple of whole numbers")
    sizes = [s.impossible] if s.impossible else [(s.size[0], width) for width in SIDES]
    for size in sizes:
        try:
            s.backbone.latent_shape(*size)
        except UserError:
            return
        except Exception as error:
            raise AssertionError(f"a size of {size} is a UserError, not {type(error).__name__}: {error}") from error
    that(s.impossible is None, f"a size of {s.impossible} is a UserError")


def times(s: Subject) -> None:
    """Schedules, the range of times, the start and the weight of errors are what samples and losses can be made of."""
    low, high = s.backbone.sigma_range
    that(0 <= low < high <= 1, f"`sigma_range` goes up, within [0, 1]: not from {low} to {high}")
    for steps in (1, 2, 10):
        schedule = s.backbone.schedule(*s.size, steps)
        that(isinstance(schedule, Schedule), f"`schedule` gives a Schedule, not {type(schedule).__name__}")
        try:
            sigmas = sampler_times(steps, schedule)
        except (ValueError, UserError) as error:
            raise AssertionError(f"the schedule for {steps} steps gives times: {error}") from error
        inside = all(low - 1e-9 <= sigma <= high + 1e-9 for sigma in sigmas[:-1].tolist())
        that(inside, f"the times of {steps} steps, but for the final 0, lie in `sigma_range`")
        start = s.backbone.start(float(sigmas[0]))
        that(isinstance(start, float | int) and 0 < start < math.inf, f"`start` is a number above 0, not {start}")
    sigma = torch.linspace(high, low, 3)
    weight = s.backbone.loss_weight(sigma)
    if weight is None:
        return
    that(weight.shape == sigma.shape, f"`loss_weight` is one number a sample, not {tuple(weight.shape)}")
    that(bool((weight.isfinite() & (weight >= 0)).all()), "`loss_weight` is finite and not negative")
    that(weight.dtype == sigma.dtype, f"`loss_weight` is of sigma's dtype {sigma.dtype}, not {weight.dtype}")
    that(not weight.requires_grad, "`loss_weight` has no gradient")


def prompts(s: Subject) -> None:
    """Its own example is one that it can draw; a prompt's bucket is one value; `truncated_prompts` names some of the
    prompts."""
    example = s.backbone.example(s.size)
    that(isinstance(example, Prompt), f"`example` gives a Prompt, not {type(example).__name__}")
    that(example.size == s.size, f"`example` has the size that it was asked for, not {example.size}")
    try:
        s.backbone.check_prompts(s.prompts)
    except UserError as error:
        raise AssertionError(f"`check_prompts` takes the model's own example: {error}") from error
    for prompt in s.prompts:
        contract_checks.bucket(s.backbone, prompt)
    contract_checks.truncated_prompts(s.backbone, s.prompts)


def encode(s: Subject) -> None:
    """One row a prompt, whatever the other prompts are; no gradient."""
    _rows(s, s.backbone.encode, "prompt")


def unconditional(s: Subject) -> None:
    """Likewise what guidance leads away from; it depends on the negative text, and not on the text."""
    if not s.backbone.supports_guidance:
        raise unittest.SkipTest("the model has no unconditional prediction")
    _rows(s, s.backbone.unconditional, "unconditional prompt")
    named = [replace(prompt, negative="a blurred photograph") for prompt in s.prompts]
    for prompts, what in ((s.prompts, "without a negative text"), (named, "with one")):
        first, *others = [s.backbone.unconditional([prompt]) for prompt in prompts]
        for other in others:
            for name, tensor in first.tensors.items():
                equal(other.tensors[name], tensor, f"unconditional {name} {what} ignores the text")


def _rows(s: Subject, encode: Callable[[Sequence[Prompt]], Conditioning], what: str) -> None:
    encoded, again = encode(s.prompts), encode(s.prompts)
    that(encoded.tensors, "there is conditioning")
    that(encoded.lengths.keys() <= encoded.tensors.keys(), "`lengths` are those of tensors")
    for name, tensor in encoded.tensors.items():
        that(len(tensor) == len(s.texts), f"{name} has one row a {what}")
        that(not tensor.requires_grad, f"{name} has no gradient")
        equal(again.tensors[name], tensor, f"{name} is the same every time")
        if name in encoded.lengths:
            lengths = encoded.lengths[name]
            that(len(lengths) == len(tensor), f"{name} has one length a {what}")
            that(max(lengths) == tensor.shape[1], f"{name} is as long as the longest of its rows")
            beyond = [row[length:] for row, length in zip(tensor, lengths, strict=True)]
            that(not any(bool(rest.any()) for rest in beyond), f"{name} is zero beyond the length of a row")
    for i, prompt in enumerate(s.prompts):
        alone = encode([prompt])
        that(alone.tensors.keys() == encoded.tensors.keys(), f"conditioning has the same tensors for every {what}")
        that(alone.lengths.keys() == encoded.lengths.keys(), f"`lengths` name the same tensors for every {what}")
        for name, tensor in alone.tensors.items():
            row = encoded.rows([i]).tensors[name]
            that(tensor.shape == row.shape, f"{name} of a {what} is as long alone as among others")
            close(tensor, row, f"{name} of a {what} does not depend on others", s.tolerance)


def velocity(s: Subject) -> None:
    """Float32 like the latents, finite from noise to data, the same every time."""
    x_sigma, sigma, conditioning = s.arguments()
    kept = x_sigma.clone()
    with torch.no_grad():
        found = s.backbone.velocity(x_sigma, sigma, conditioning)
    that(found.shape == x_sigma.shape, f"velocity has the latents' shape, not {tuple(found.shape)}")
    that(found.dtype == torch.float32, f"velocity is float32, not {found.dtype}")
    that(found.isfinite().all(), "velocity is finite for sigma in [0, 1], both ends included")
    equal(x_sigma, kept, "velocity leaves its argument alone")
    equal(s.velocity(), found, "velocity is the same every time")


def batch_invariance(s: Subject) -> None:
    """Any micro-batch gives the same velocities."""
    x_sigma, sigma, conditioning = s.arguments()
    together = s.velocity()
    for i in range(len(s.texts)):
        row = slice(i, i + 1)
        with torch.no_grad():
            alone = s.backbone.velocity(x_sigma[row], sigma[row], conditioning.rows(row))
        close(alone, together[row], "velocity of a sample does not depend on the others", s.tolerance)


def guide(s: Subject) -> None:
    """Both velocities are of one batch; what they become has their shape, and does not depend on other samples."""
    if not s.backbone.supports_guidance:
        raise unittest.SkipTest("the model has no unconditional prediction")
    x_sigma, sigma, conditioning = s.arguments()
    free = s.backbone.unconditional(s.prompts)
    difference = same_places(conditioning, free)
    that(difference is None, f"`unconditional` gives rows like those of `encode`: {difference}")
    network = contract_checks.Checked(s.backbone)
    with torch.no_grad():
        found = guided_velocity(network, x_sigma, sigma, conditioning, free, 2.5)
        for i in range(len(s.texts)):
            row = slice(i, i + 1)
            alone = guided_velocity(network, x_sigma[row], sigma[row], conditioning.rows(row), free.rows(row), 2.5)
            close(alone, found[row], "a guided velocity does not depend on the other samples", s.tolerance)
    that(found.dtype == torch.float32, f"`guide` gives float32, not {found.dtype}")
    that(found.isfinite().all(), "a guided velocity is finite")


def gradient(s: Subject) -> None:
    """The trained parameters get one, the others none."""
    s.backbone.velocity(*s.arguments()).square().sum().backward()  # type: ignore[no-untyped-call]
    parameters = s.backbone.trainable().values()
    trained = {id(parameter) for parameter in parameters}
    for name, parameter in s.backbone.module.named_parameters():
        that(parameter.grad is None or id(parameter) in trained, f"{name} is not trained and gets no gradient")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    that(any(gradient.any() for gradient in gradients), "the trained parameters get a gradient")
    for parameter in parameters:
        parameter.grad = None


def decode(s: Subject) -> None:
    """Media of the declared kind, float32 in [0, 1], of the size that was asked for, the same in any batch."""
    x0 = normal(3, *s.backbone.latent_shape(*s.size), seed=1)
    media = s.backbone.decode(x0)
    that(media.dim() in (4, 5), f"media are [B, 3, H, W] or [B, F, 3, H, W], not {tuple(media.shape)}")
    declared = s.backbone.media
    that(declared in ("image", "video"), f"`media` is image or video, not {declared!r}")
    found = "video" if media.dim() == 5 else "image"
    that(declared == found, f"`media` says what `decode` gives: it gives {found} and says {declared}")
    fps = s.backbone.fps
    that(fps is None or (isinstance(fps, int | float) and 0 < fps < math.inf), f"`fps` is a number, not {fps!r}")
    that(fps is None or declared == "video", f"`fps` is of videos; images have none, not {fps!r}")
    that((len(media), *media.shape[-3:]) == (3, 3, *s.size), f"media have three channels of {s.size}")
    that(media.dtype == torch.float32, f"media are float32, not {media.dtype}")
    that(bool((media >= 0).all() and (media <= 1).all()), "media lie in [0, 1]")
    that(not media.requires_grad, "media have no gradient")
    equal(s.backbone.decode(x0), media, "media are the same every time")
    for i in range(len(x0)):
        close(s.backbone.decode(x0[i : i + 1])[0], media[i], "media do not depend on the others", s.tolerance)


def reproducible(s: Subject) -> None:
    """Built twice, it is the same twice: names and weights."""
    first, again = s.make(), s.make()
    that(list(again.trainable()) == list(first.trainable()), "the names of trained parameters are always the same")
    for name, parameter in again.trainable().items():
        equal(parameter, first.trainable()[name], f"{name} starts the same every time")


def random_state(s: Subject) -> None:
    """Neither loading nor computing draws from a global generator."""
    with global_state_left_alone("a backbone"):
        s.make()
        s.velocity()
        s.backbone.decode(normal(1, *s.backbone.latent_shape(*s.size)))
