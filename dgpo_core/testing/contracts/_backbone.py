"""Backbones: shapes, ranges, rows apart from each other, and weights that the engine can exchange."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.testing.contracts._assertions import close, equal, global_state_left_alone, normal, that

__all__ = ["check_backbone"]


def check_backbone(
    make: Callable[[], Backbone],
    size: tuple[int, int],
    *,
    impossible: tuple[int, int] | None = None,
    texts: Sequence[str] = ("a red circle", "two blue squares on the left of a very long fence", ""),
    tolerance: float = 1e-4,
) -> None:
    """Shapes, dtypes and ranges; rows independent of their batch; views of the weights; nothing random.

    make: builds the backbone on the CPU, the same every time; size: (height, width) that it can draw; impossible: one
    that it cannot; tolerance: of one sample against the same in a batch.
    """
    with global_state_left_alone("a backbone"):
        backbone = make()
        _check_trainable(backbone)
        _check_latent_shape(backbone, size, impossible)
        _check_encode(backbone, texts, tolerance)
        _check_velocity(backbone, size, texts, tolerance)
        _check_gradient(backbone, size, texts)
        _check_weights(backbone, size, texts)
        _check_decode(backbone, size, tolerance)
        again = make()
    that(list(again.trainable()) == list(backbone.trainable()), "the names of trained parameters are always the same")
    for name, parameter in again.trainable().items():
        equal(parameter, backbone.trainable()[name], f"{name} starts the same every time")


def _arguments(backbone: Backbone, size: tuple[int, int], texts: Sequence[str]) -> tuple[Tensor, Tensor, Any]:
    x_sigma = normal(len(texts), *backbone.latent_shape(*size))
    return x_sigma, torch.linspace(1.0, 0.0, len(texts)), backbone.encode(texts)


def _check_trainable(backbone: Backbone) -> None:
    trainable = backbone.trainable()
    inside = {id(parameter) for parameter in backbone.module.parameters()}
    that(trainable, "something is trained")
    for name, parameter in trainable.items():
        that(parameter.dtype == torch.float32, f"{name} is float32")
        that(parameter.requires_grad, f"{name} requires a gradient")
        that(id(parameter) in inside, f"{name} is a parameter of `module`")
    trained = {id(parameter) for parameter in trainable.values()}
    for name, parameter in backbone.module.named_parameters():
        that(not parameter.requires_grad or id(parameter) in trained, f"{name} is frozen or in `trainable`")


def _check_latent_shape(backbone: Backbone, size: tuple[int, int], impossible: tuple[int, int] | None) -> None:
    shape = backbone.latent_shape(*size)
    that(shape and all(type(n) is int and n > 0 for n in shape), "a latent's shape is a tuple of whole numbers")
    if impossible is not None:
        try:
            backbone.latent_shape(*impossible)
        except UserError:
            return
        that(False, f"a size of {impossible} is a UserError")


def _check_encode(backbone: Backbone, texts: Sequence[str], tolerance: float) -> None:
    encoded = backbone.encode(texts)
    again = backbone.encode(texts)
    that(encoded.tensors, "there is conditioning")
    for name, tensor in encoded.tensors.items():
        that(len(tensor) == len(texts), f"{name} has one row a prompt")
        that(not tensor.requires_grad, f"{name} has no gradient")
        equal(again.tensors[name], tensor, f"{name} is the same every time")
    for i, text in enumerate(texts):
        alone = backbone.encode([text])
        that(alone.tensors.keys() == encoded.tensors.keys(), "conditioning has the same tensors for every prompt")
        for name, tensor in alone.tensors.items():
            close(tensor[0], encoded.tensors[name][i], f"{name} of a prompt does not depend on others", tolerance)


def _check_velocity(backbone: Backbone, size: tuple[int, int], texts: Sequence[str], tolerance: float) -> None:
    x_sigma, sigma, conditioning = _arguments(backbone, size, texts)
    kept = x_sigma.clone()
    with torch.no_grad():
        together = backbone.velocity(x_sigma, sigma, conditioning)
        that(together.shape == x_sigma.shape, f"velocity has the latents' shape, not {tuple(together.shape)}")
        that(together.dtype == torch.float32, f"velocity is float32, not {together.dtype}")
        that(together.isfinite().all(), "velocity is finite for sigma in [0, 1], both ends included")
        equal(x_sigma, kept, "velocity leaves its argument alone")
        equal(backbone.velocity(x_sigma, sigma, conditioning), together, "velocity is the same every time")
        for i in range(len(texts)):
            row = slice(i, i + 1)
            alone = backbone.velocity(x_sigma[row], sigma[row], conditioning.rows(row))
            close(alone, together[row], "velocity of a sample does not depend on the others", tolerance)


def _check_gradient(backbone: Backbone, size: tuple[int, int], texts: Sequence[str]) -> None:
    backbone.velocity(*_arguments(backbone, size, texts)).square().sum().backward()  # type: ignore[no-untyped-call]
    trained = {id(parameter) for parameter in backbone.trainable().values()}
    for name, parameter in backbone.module.named_parameters():
        that(parameter.grad is None or id(parameter) in trained, f"{name} is not trained and gets no gradient")
    gradients = [parameter.grad for parameter in backbone.trainable().values() if parameter.grad is not None]
    that(any(gradient.any() for gradient in gradients), "the trained parameters get a gradient")
    for parameter in backbone.trainable().values():
        parameter.grad = None


def _check_weights(backbone: Backbone, size: tuple[int, int], texts: Sequence[str]) -> None:
    """The engine points the parameters at other tensors, and switches the adapter off and on."""
    arguments = _arguments(backbone, size, texts)
    parameters = list(backbone.trainable().values())

    @torch.no_grad()
    def velocity() -> Tensor:
        return backbone.velocity(*arguments)

    def base() -> Tensor | None:
        off = backbone.without_adapter()
        if off is None:
            return None
        with off:
            return velocity()

    def fail() -> None:
        off = backbone.without_adapter()
        with contextlib.suppress(KeyError), off or contextlib.nullcontext():
            raise KeyError

    before, base_before = velocity(), base()
    start = [parameter.data for parameter in parameters]
    for i, parameter in enumerate(parameters):
        parameter.data = start[i] + 0.1 * normal(*parameter.shape, seed=i)
    moved, base_moved = velocity(), base()
    that(not torch.equal(moved, before), "velocity follows the trained weights where `parameter.data` is replaced")
    if base_before is not None and base_moved is not None:
        equal(base_moved, base_before, "without its adapter the model does not depend on the trained weights")
        that(not torch.equal(base_moved, moved), "without its adapter the model is another one")
    fail()
    equal(velocity(), moved, "the adapter is back after `without_adapter`, also after an error")
    with tempfile.TemporaryDirectory() as directory:
        backbone.save_adapter(Path(directory) / "adapter")
        that(any(f.is_file() for f in Path(directory).rglob("*")), "save_adapter writes something")
    equal(velocity(), moved, "save_adapter changes nothing")
    for parameter, tensor in zip(parameters, start, strict=True):
        parameter.data = tensor
    equal(velocity(), before, "velocity is as before with the weights from before")


def _check_decode(backbone: Backbone, size: tuple[int, int], tolerance: float) -> None:
    x0 = normal(3, *backbone.latent_shape(*size), seed=1)
    media = backbone.decode(x0)
    that(media.dim() in (4, 5), f"media are [B, 3, H, W] or [B, F, 3, H, W], not {tuple(media.shape)}")
    that((len(media), *media.shape[-3:]) == (3, 3, *size), f"media have three channels of {size}")
    that(media.dtype == torch.float32, f"media are float32, not {media.dtype}")
    that(bool((media >= 0).all() and (media <= 1).all()), "media lie in [0, 1]")
    that(not media.requires_grad, "media have no gradient")
    equal(backbone.decode(x0), media, "media are the same every time")
    for i in range(len(x0)):
        close(backbone.decode(x0[i : i + 1])[0], media[i], "media do not depend on the others", tolerance)
