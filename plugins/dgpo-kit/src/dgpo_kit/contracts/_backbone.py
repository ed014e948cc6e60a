"""Checks of backbones: shapes, ranges, independence of batch rows, and weights that the engine can exchange."""

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
from dgpo_kit.contracts._backbone_section import dtype, fast, gradient_checkpointing, package
from dgpo_kit.contracts._backbone_subject import Subject
from dgpo_kit.contracts._backbone_weights import adapter, formats, merged, save_adapter, save_weights, weights
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_kit.given import NeedsInput

__all__ = ["backbone_checks", "check_backbone"]

TEXTS = ("a red circle", "two blue squares on the left of a very long fence", "")
SIZES = ((64, 64), (32, 32), (16, 16), (8, 8), (128, 128), (256, 256), (512, 512))
"""Sizes (height, width) to try, in this order, if none is given."""
SIDES = (45, 13, 7, 1)
"""Widths that few models support, tried if no unsupported size is given."""


def check_backbone(
    make: Callable[[], Backbone],
    size: tuple[int, int],
    *,
    impossible: tuple[int, int] | None = None,
    texts: Sequence[str] = TEXTS,
    tolerance: float = 1e-4,
) -> None:
    """Check shapes, dtypes, ranges, batch independence, exchange of weights, and that nothing is random.

    make: builds the backbone on the CPU, always the same; size: a supported (height, width) in pixels; impossible: an
    unsupported one; tolerance: between a sample computed alone and in a batch. Raises AssertionError at the first
    violation.
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
    """Yield the checks of a backbone; arguments as for `check_backbone`. size: by default the first of `SIZES` that the
    backbone supports."""

    @cache
    def subject() -> Subject:
        backbone = make()
        return Subject(make, backbone, size or _possible(backbone), impossible, texts, tolerance)

    return checks_of(
        subject, trainable, latent_shape, times, prompts, encode, unconditional, velocity, batch_invariance, guide,
        gradient, weights,
        adapter, merged, save_adapter, formats, save_weights, decode, reproducible, encoder_model, random_state, dtype,
        gradient_checkpointing, package, fast,
    )  # fmt: skip


def _possible(backbone: Backbone) -> tuple[int, int]:
    for size in SIZES:
        with contextlib.suppress(UserError):
            backbone.latent_shape(*size)
            return size
    raise NeedsInput(f"a size in pixels: it supports none of {', '.join(f'{h}x{w}' for h, w in SIZES)}")


def trainable(s: Subject) -> None:
    """`trainable` returns float32 parameters of `module` that require a gradient; all others are frozen."""
    found = s.backbone.trainable()
    inside = {id(parameter) for parameter in s.backbone.module.parameters()}
    that(found, "`trainable` must not be empty")
    for name, parameter in found.items():
        that(parameter.dtype == torch.float32, f"{name} must be float32, got {parameter.dtype}")
        that(parameter.requires_grad, f"{name} must require a gradient")
        that(id(parameter) in inside, f"{name} must be a parameter of `module`")
    trained = {id(parameter) for parameter in found.values()}
    for name, parameter in s.backbone.module.named_parameters():
        that(not parameter.requires_grad or id(parameter) in trained, f"{name} must be frozen or in `trainable`")


def latent_shape(s: Subject) -> None:
    """The latent shape consists of positive integers; an unsupported size raises UserError."""
    shape = s.backbone.latent_shape(*s.size)
    that(
        shape and all(type(n) is int and n > 0 for n in shape),
        "`latent_shape` must return a tuple of positive integers",
    )
    sizes = [s.impossible] if s.impossible else [(s.size[0], width) for width in SIDES]
    for size in sizes:
        try:
            s.backbone.latent_shape(*size)
        except UserError:
            return
        except Exception as error:
            message = f"an unsupported size {size} must raise UserError, got {type(error).__name__}: {error}"
            raise AssertionError(message) from error
    that(s.impossible is None, f"an unsupported size {s.impossible} must raise UserError")


def times(s: Subject) -> None:
    """`schedule`, `sigma_range`, `start` and `loss_weight` return valid values."""
    low, high = s.backbone.sigma_range
    that(0 <= low < high <= 1, f"`sigma_range` must be ascending within [0, 1], got ({low}, {high})")
    for steps in (1, 2, 10):
        schedule = s.backbone.schedule(*s.size, steps)
        that(isinstance(schedule, Schedule), f"`schedule` must return a Schedule, got {type(schedule).__name__}")
        try:
            sigmas = sampler_times(steps, schedule)
        except (ValueError, UserError) as error:
            raise AssertionError(f"the schedule for {steps} steps must define sigmas: {error}") from error
        inside = all(low - 1e-9 <= sigma <= high + 1e-9 for sigma in sigmas[:-1].tolist())
        that(inside, f"the sigmas of {steps} steps, except for the final 0, must lie in `sigma_range`")
        start = s.backbone.start(float(sigmas[0]))
        that(isinstance(start, float | int) and 0 < start < math.inf, f"`start` must be greater than 0, got {start}")
    sigma = torch.linspace(high, low, 3)
    weight = s.backbone.loss_weight(sigma)
    if weight is None:
        return
    expected = tuple(sigma.shape)
    that(weight.shape == sigma.shape, f"`loss_weight` must have shape [B] {expected}, got {tuple(weight.shape)}")
    that(bool((weight.isfinite() & (weight >= 0)).all()), "`loss_weight` must be finite and >= 0")
    that(weight.dtype == sigma.dtype, f"`loss_weight` must have sigma's dtype {sigma.dtype}, got {weight.dtype}")
    that(not weight.requires_grad, "`loss_weight` must not require a gradient")


def prompts(s: Subject) -> None:
    """`check_prompts` accepts the result of `example`; `bucket` and `truncated_prompts` return valid values."""
    example = s.backbone.example(s.size)
    that(isinstance(example, Prompt), f"`example` must return a Prompt, got {type(example).__name__}")
    that(example.size == s.size, f"`example` must have the requested size {s.size}, got {example.size}")
    try:
        s.backbone.check_prompts(s.prompts)
    except UserError as error:
        raise AssertionError(f"`check_prompts` must accept the result of `example`: {error}") from error
    for prompt in s.prompts:
        contract_checks.bucket(s.backbone, prompt)
    contract_checks.truncated_prompts(s.backbone, s.prompts)


def encode(s: Subject) -> None:
    """`encode` returns one row per prompt, independent of other prompts, without gradient."""
    _rows(s, s.backbone.encode, "prompt")


def unconditional(s: Subject) -> None:
    """`unconditional` returns one row per prompt, which depends on the negative prompt but not on the text."""
    if not s.backbone.supports_guidance:
        raise unittest.SkipTest("the model has no unconditional prediction")
    _rows(s, s.backbone.unconditional, "unconditional prompt")
    negative = [replace(prompt, negative="a blurred photograph") for prompt in s.prompts]
    for prompts, what in ((s.prompts, "without a negative prompt"), (negative, "with a negative prompt")):
        first, *others = [s.backbone.unconditional([prompt]) for prompt in prompts]
        for other in others:
            for name, tensor in first.tensors.items():
                equal(other.tensors[name], tensor, f"unconditional {name} {what} must not depend on the text")


def _rows(s: Subject, encode: Callable[[Sequence[Prompt]], Conditioning], what: str) -> None:
    encoded, again = encode(s.prompts), encode(s.prompts)
    that(encoded.tensors, "conditioning must have tensors")
    that(encoded.lengths.keys() <= encoded.tensors.keys(), "the keys of `lengths` must be keys of `tensors`")
    for name, tensor in encoded.tensors.items():
        that(len(tensor) == len(s.texts), f"{name} must have one row per {what}: {len(s.texts)}, got {len(tensor)}")
        that(not tensor.requires_grad, f"{name} must not require a gradient")
        equal(again.tensors[name], tensor, f"{name} must be deterministic")
        if name in encoded.lengths:
            lengths = encoded.lengths[name]
            that(len(lengths) == len(tensor), f"{name} must have one length per {what}")
            that(max(lengths) == tensor.shape[1], f"{name} must be as long as its longest row")
            beyond = [row[length:] for row, length in zip(tensor, lengths, strict=True)]
            that(not any(bool(rest.any()) for rest in beyond), f"{name} must be 0 beyond the length of a row")
    for i, prompt in enumerate(s.prompts):
        alone = encode([prompt])
        that(alone.tensors.keys() == encoded.tensors.keys(), f"every {what} must have the same conditioning tensors")
        that(alone.lengths.keys() == encoded.lengths.keys(), f"`lengths` must have the same keys for every {what}")
        for name, tensor in alone.tensors.items():
            row = encoded.rows([i]).tensors[name]
            that(tensor.shape == row.shape, f"the length of {name} must not depend on the other {what}s")
            close(tensor, row, f"{name} of a {what} must not depend on the other {what}s", s.tolerance)


def velocity(s: Subject) -> None:
    """The velocity is float32, has the latents' shape, and is finite and deterministic."""
    x_sigma, sigma, conditioning = s.arguments()
    kept = x_sigma.clone()
    with torch.no_grad():
        found = s.backbone.velocity(x_sigma, sigma, conditioning)
    that(
        found.shape == x_sigma.shape,
        f"velocity must have the latents' shape {tuple(x_sigma.shape)}, got {tuple(found.shape)}",
    )
    that(found.dtype == torch.float32, f"velocity must be float32, got {found.dtype}")
    that(found.isfinite().all(), "velocity must be finite for all sigma in `sigma_range`, including both ends")
    equal(x_sigma, kept, "velocity must not modify its arguments")
    equal(s.velocity(), found, "velocity must be deterministic")


def batch_invariance(s: Subject) -> None:
    """Velocities do not depend on the micro-batch."""
    x_sigma, sigma, conditioning = s.arguments()
    together = s.velocity()
    for i in range(len(s.texts)):
        row = slice(i, i + 1)
        with torch.no_grad():
            alone = s.backbone.velocity(x_sigma[row], sigma[row], conditioning.rows(row))
        close(alone, together[row], "the velocity of a sample must not depend on the other samples", s.tolerance)


def guide(s: Subject) -> None:
    """The guided velocity has the shape of a velocity and does not depend on other samples."""
    if not s.backbone.supports_guidance:
        raise unittest.SkipTest("the model has no unconditional prediction")
    x_sigma, sigma, conditioning = s.arguments()
    free = s.backbone.unconditional(s.prompts)
    difference = same_places(conditioning, free)
    that(difference is None, f"`unconditional` must return rows like those of `encode`: {difference}")
    network = contract_checks.Checked(s.backbone)
    with torch.no_grad():
        found = guided_velocity(network, x_sigma, sigma, conditioning, free, 2.5)
        for i in range(len(s.texts)):
            row = slice(i, i + 1)
            alone = guided_velocity(network, x_sigma[row], sigma[row], conditioning.rows(row), free.rows(row), 2.5)
            close(alone, found[row], "a guided velocity must not depend on the other samples", s.tolerance)
    that(found.dtype == torch.float32, f"`guide` must return float32, got {found.dtype}")
    that(found.isfinite().all(), "a guided velocity must be finite")


def gradient(s: Subject) -> None:
    """The backward pass computes gradients of the trained parameters and of no others."""
    s.backbone.velocity(*s.arguments()).square().sum().backward()  # type: ignore[no-untyped-call]
    parameters = s.backbone.trainable().values()
    trained = {id(parameter) for parameter in parameters}
    for name, parameter in s.backbone.module.named_parameters():
        that(parameter.grad is None or id(parameter) in trained, f"{name} is not trained and must get no gradient")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    that(any(gradient.any() for gradient in gradients), "the trained parameters must get a gradient")
    for parameter in parameters:
        parameter.grad = None


def decode(s: Subject) -> None:
    """`decode` returns media of the declared kind and requested size, float32 in [0, 1], independent of the batch."""
    x0 = normal(3, *s.backbone.latent_shape(*s.size), seed=1)
    media = s.backbone.decode(x0)
    shape = tuple(media.shape)
    that(media.dim() in (4, 5), f"`decode` must return [B, 3, H, W] or [B, F, 3, H, W], got {shape}")
    declared = s.backbone.media
    that(declared in ("image", "video"), f"`media` must be image or video, got {declared!r}")
    found = "video" if media.dim() == 5 else "image"
    that(declared == found, f"`media` must be {found}, which `decode` returns, got {declared}")
    fps = s.backbone.fps
    that(fps is None or (isinstance(fps, int | float) and 0 < fps < math.inf), f"`fps` must be > 0, got {fps!r}")
    that(fps is None or declared == "video", f"`fps` must be None for images, got {fps!r}")
    expected = (3, 3, *s.size)
    that((len(media), *media.shape[-3:]) == expected, f"media must have 3 channels and size {s.size}, got {shape}")
    that(media.dtype == torch.float32, f"media must be float32, got {media.dtype}")
    that(bool((media >= 0).all() and (media <= 1).all()), "media must lie in [0, 1]")
    that(not media.requires_grad, "media must not require a gradient")
    equal(s.backbone.decode(x0), media, "`decode` must be deterministic")
    for i in range(len(x0)):
        alone = s.backbone.decode(x0[i : i + 1])[0]
        close(alone, media[i], "the media of a sample must not depend on the other samples", s.tolerance)


def reproducible(s: Subject) -> None:
    """Backbones built with the same arguments have the same parameter names, weights and encoder identity."""
    first, again = s.backbone, s.make()
    wanted, found = first.trainable(), again.trainable()
    that(list(found) == list(wanted), "the names of trained parameters must be the same in every instance")
    for name, parameter in found.items():
        equal(parameter, wanted[name], f"{name} must have the same initial value in every instance")
    identity = first.encoder_identity()
    valid = identity is None or (isinstance(identity, str) and identity)
    that(valid, f"`encoder_identity` must return None or a text, got {identity!r}")
    that(again.encoder_identity() == identity, "`encoder_identity` must be the same in every instance")


def encoder_model(s: Subject) -> None:
    """The model for embeddings alone has the rows and the encoder identity of the whole model."""
    kind, whole = type(s.backbone), s.backbone
    if kind.encoder_model.__func__ is Backbone.encoder_model.__func__:  # type: ignore[attr-defined]
        return  # it is the whole model
    alone = kind.encoder_model(whole.section, whole.options, device=whole.device)
    that(
        alone.encoder_identity() == whole.encoder_identity(),
        "the `encoder_identity` of `encoder_model` must be that of the whole model",
    )
    prompts = s.prompts[:1]
    for method in ("encode", "unconditional") if whole.supports_guidance else ("encode",):
        with alone.encoding(), whole.encoding():
            rows, expected = (getattr(backbone, method)(prompts) for backbone in (alone, whole))
        that(
            list(rows.tensors) == list(expected.tensors), f"`{method}` of `encoder_model` must return the same tensors"
        )
        for name, tensor in expected.tensors.items():
            equal(rows.tensors[name], tensor, f"{name} of `{method}` of `encoder_model`")


def random_state(s: Subject) -> None:
    """Loading and computing do not use a global random generator."""
    with global_state_left_alone("a backbone"):
        s.make()
        s.backbone.encode(s.prompts)
        s.velocity()
        s.backbone.decode(normal(1, *s.backbone.latent_shape(*s.size)))
