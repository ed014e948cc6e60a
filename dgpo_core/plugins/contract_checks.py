"""Check the outputs of a backbone against its contract at run time.

A wrong shape or wrong row lengths would cause a traceback far from the cause, or train on wrong values, since tensors
of other shapes often broadcast. Each function raises PluginError naming the backbone and the violated requirement. None
of them synchronizes the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import PluginError
from dgpo_core.types import Conditioning, Prompt
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone

__all__ = [
    "Checked",
    "broken",
    "bucket",
    "built",
    "conditioning",
    "entered",
    "latent_shape",
    "loss_weight",
    "media",
    "start",
    "truncated_prompts",
    "velocity",
    "weights_of_errors",
]

FLOATS = (torch.float32, torch.float64)
FORMAT = re.compile(r"[a-z0-9][a-z0-9-]*\Z")
FAST = {"adapter", "norms"}
"""What `Backbone.supports_fast` may contain."""
SHOWN = 100
TIMES = 9
"""Number of times at which `loss_weight` is checked before a run."""


def broken(backbone: Backbone, what: str) -> PluginError:
    """Return an error that names the backbone, its class and the problem."""
    use = getattr(getattr(backbone, "section", None), "use", None)
    kind = type(backbone)
    return PluginError(f"backbone: {use or kind.__name__} ({kind.__module__}:{kind.__qualname__}): {what}")


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return clean(f"{value!r} ({type(value).__name__})", SHOWN)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def built(backbone: Backbone) -> None:
    """Check a newly constructed backbone: its attributes, its range of times and its trained parameters."""
    if getattr(backbone, "section", None) is None or not hasattr(backbone, "options"):
        raise broken(backbone, "its __init__ does not call super().__init__(section, options, device=device)")
    from dgpo_core.contracts import Adapter

    if not (backbone.adapter is None or isinstance(backbone.adapter, Adapter)):
        raise broken(backbone, f"`adapter` must be None or a contracts.Adapter, got {_shown(backbone.adapter)}")
    if backbone.adapter is not None:
        _formats(backbone, backbone.adapter.formats)
    if not isinstance(backbone.module, torch.nn.Module):
        raise broken(backbone, f"`module` must be a torch.nn.Module, got {_shown(backbone.module)}")
    if not isinstance(backbone.supports_guidance, bool):
        raise broken(backbone, f"`supports_guidance` must be a bool, got {_shown(backbone.supports_guidance)}")
    if not isinstance(backbone.supports_fast, frozenset | set) or not set(backbone.supports_fast) <= FAST:
        raise broken(
            backbone,
            f"`supports_fast` must be a set of {' and '.join(sorted(FAST))}, got {_shown(backbone.supports_fast)}",
        )
    if backbone.media not in ("image", "video"):
        raise broken(backbone, f"`media` must be 'image' or 'video', got {_shown(backbone.media)}")
    fps: object = backbone.fps
    if fps is not None and not (_number(fps) and 0 < float(fps) < math.inf):  # type: ignore[arg-type]
        raise broken(backbone, f"`fps` must be a positive number, or None for images, got {_shown(fps)}")
    _range(backbone)
    _trained(backbone)


def _formats(backbone: Backbone, value: object) -> None:
    """Check the export formats before the run, so that it does not fail when the adapter is saved."""
    valid = isinstance(value, tuple | list) and value and all(isinstance(f, str) and FORMAT.match(f) for f in value)
    if not valid:
        raise broken(
            backbone, f"`adapter.formats` must be a tuple of names with a-z, 0-9 and dashes, got {_shown(value)}"
        )


def _range(backbone: Backbone) -> None:
    value: object = backbone.sigma_range
    valid = isinstance(value, Sequence) and len(value) == 2 and all(map(_number, value))
    if not valid or not 0 <= value[0] < value[1] <= 1:  # type: ignore[index]
        raise broken(backbone, f"`sigma_range` must be two numbers, 0 <= low < high <= 1, got {_shown(value)}")


def _trained(backbone: Backbone) -> None:
    parameters: object = backbone.trainable()
    if not isinstance(parameters, Mapping):
        raise broken(backbone, f"`trainable` must return parameters by name, got {_shown(parameters)}")
    if not parameters:
        what = "its adapter has no parameters" if backbone.adapter is not None else "no parameter requires gradients"
        raise broken(backbone, f"no trainable parameters: {what}")
    registered = {id(parameter) for parameter in backbone.module.parameters()}
    for name, parameter in parameters.items():
        if not isinstance(name, str) or not isinstance(parameter, torch.nn.Parameter):
            raise broken(backbone, f"`trainable` must contain nn.Parameters, got {_shown(name)}: {_shown(parameter)}")
        if parameter.dtype not in FLOATS:
            raise broken(backbone, f"`trainable`: {name} must be float32, got {parameter.dtype}")
        if not parameter.requires_grad:
            raise broken(backbone, f"`trainable`: {name} does not require gradients and would never be updated")
        if id(parameter) not in registered:
            raise broken(backbone, f"`trainable`: {name} is not a parameter of `module`; training it has no effect")


def latent_shape(backbone: Backbone, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the checked latent shape of samples of this size (height, width)."""
    shape: object = backbone.latent_shape(*size)
    if not (isinstance(shape, tuple) and shape and all(type(n) is int and n > 0 for n in shape)):
        raise broken(
            backbone,
            f"`latent_shape` of {size[0]}x{size[1]} must be a tuple of positive integers, got {_shown(shape)}",
        )
    return tuple(shape)


def bucket(backbone: Backbone, prompt: Prompt) -> Hashable:
    """Return the checked batching key of a prompt. It must be deterministic, because ranks must agree on it."""
    key, again = backbone.bucket(prompt), backbone.bucket(prompt)
    try:
        same = bool(key == again) and hash(key) == hash(again)
    except Exception as error:
        raise broken(backbone, f"`bucket` must return a hashable, comparable value, got {_shown(key)}") from error
    if not same:
        raise broken(
            backbone, f"`bucket` must be deterministic, got {_shown(key)} and then {_shown(again)} for one prompt"
        )
    return key


@contextmanager
def entered(backbone: Backbone, context: AbstractContextManager[None] | None, what: str) -> Iterator[None]:
    """Enter a context manager that the method `what` of the backbone or its adapter returned."""
    if not (hasattr(context, "__enter__") and hasattr(context, "__exit__")):
        raise broken(backbone, f"`{what}` must return a context manager, got {_shown(context)}")
    assert context is not None
    with context:
        yield


def conditioning(backbone: Backbone, row: Conditioning, what: str) -> None:
    """Check the row that the method `what`, `encode` or `unconditional`, returned for a single prompt."""
    if not isinstance(row, Conditioning) or not isinstance(row.tensors, Mapping) or not row.tensors:
        raise broken(backbone, f"`{what}` must return a Conditioning with tensors, got {_shown(row)}")
    device = torch.device(backbone.device)
    for name, tensor in row.tensors.items():
        if not isinstance(tensor, Tensor):
            raise broken(backbone, f"`{what}`: {name} must be a tensor, got {_shown(tensor)}")
        if tensor.dim() < 1 or len(tensor) != 1:
            raise broken(backbone, f"`{what}`: {name} must have one row per prompt, got {_shown(tensor)} for 1 prompt")
        if tensor.requires_grad:
            raise broken(backbone, f"`{what}`: {name} must not require gradients: encode under torch.no_grad()")
        if tensor.device.type != device.type:
            raise broken(backbone, f"`{what}`: {name} must be on the model's device {device}, got {_shown(tensor)}")
    if not isinstance(row.lengths, Mapping):
        raise broken(backbone, f"`{what}`: `lengths` must map tensor names to row lengths, got {_shown(row.lengths)}")
    for name, lengths in row.lengths.items():
        if name not in row.tensors:
            raise broken(backbone, f"`{what}`: `lengths` contains {_shown(name)}, but there is no such tensor")
        tensor = row.tensors[name]
        if tensor.dim() < 2:
            raise broken(backbone, f"`{what}`: {name} has `lengths` and must be [B, L, ...], got {_shown(tensor)}")
        if not isinstance(lengths, tuple) or [(type(n), n) for n in lengths] != [(int, tensor.shape[1])]:
            raise broken(
                backbone,
                f"`{what}`: `lengths` of {name} must be ({tensor.shape[1]},), the length of its row, got "
                f"{_shown(lengths)}",
            )


def velocity(backbone: Backbone, output: Tensor, x_sigma: Tensor, what: str = "velocity") -> Tensor:
    """Check the output of the method `what` at x_sigma, and return it."""
    if not isinstance(output, Tensor) or output.shape != x_sigma.shape or output.dtype not in FLOATS:
        raise broken(
            backbone, f"`{what}` must return float32 {tuple(x_sigma.shape)}, like x_sigma, got {_shown(output)}"
        )
    return output


class Checked:
    """Wrap a backbone so that its velocities are checked (`flow.Guided`)."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the checked velocity of the backbone."""
        return velocity(self._backbone, self._backbone.velocity(x_sigma, sigma, conditioning), x_sigma)

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Return the checked guided velocity of the backbone."""
        output = self._backbone.guide(conditional, unconditional, guidance, x_sigma=x_sigma, sigma=sigma)
        return velocity(self._backbone, output, x_sigma, "guide")


def start(backbone: Backbone, sigma: float) -> float:
    """Return the checked scale of the initial noise at sigma."""
    scale: object = backbone.start(sigma)
    if not (_number(scale) and 0 < float(scale) < math.inf):  # type: ignore[arg-type]
        raise broken(backbone, f"`start` at sigma {sigma:.4g} must be a positive number, got {_shown(scale)}")
    return float(scale)  # type: ignore[arg-type]


def loss_weight(backbone: Backbone, sigma: Tensor) -> Tensor | None:
    """Return the checked weight of squared errors at sigma [B]."""
    weight = backbone.loss_weight(sigma)
    if weight is None:
        return None
    valid = isinstance(weight, Tensor) and weight.shape == sigma.shape and weight.device == sigma.device
    if not valid or weight.dtype != sigma.dtype or weight.requires_grad:
        raise broken(
            backbone,
            f"`loss_weight` must be None or a tensor like sigma, {_shown(sigma)}, without gradient, got "
            f"{_shown(weight)}{' with a gradient' if valid and weight.requires_grad else ''}",
        )
    return weight


def weights_of_errors(backbone: Backbone, low: float, high: float) -> None:
    """Check `loss_weight` at several training times: finite, nonnegative, not 0 everywhere."""
    sigma = torch.linspace(low, high, TIMES, device=backbone.device)
    weight = loss_weight(backbone, sigma)
    if weight is None or weight.device.type == "meta":
        return
    if not bool((weight.isfinite() & (weight >= 0)).all()) or not bool(weight.any()):
        shown = ", ".join(f"{w:.3g} at {time:.3g}" for time, w in zip(sigma.tolist(), weight.tolist(), strict=True))
        raise broken(backbone, f"`loss_weight` must be finite, nonnegative and not 0 at every time, got {shown}")


def media(backbone: Backbone, output: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Check the output of `decode` for samples of these prompts, all of the same size, and return it detached."""
    size = prompts[0].size
    if size is None:  # the rollout does not come from a RolloutSampler
        return output
    dims, shown = (4, "[B, 3, H, W]") if backbone.media == "image" else (5, "[B, F, 3, H, W]")
    expected = (len(prompts), 3, *size)
    valid = isinstance(output, Tensor) and output.dim() == dims and (len(output), *output.shape[-3:]) == expected
    if not valid or not output.dtype.is_floating_point:
        raise broken(
            backbone,
            f"`decode` must return {backbone.media}s {shown} with B, H, W = {len(prompts)}, {size[0]}, {size[1]}, "
            f"float32 in [0, 1], got {_shown(output)}",
        )
    return output.detach()


def truncated_prompts(backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
    """Return the checked indices of truncated prompts, and the maximum number of tokens."""
    output: Any = backbone.truncated_prompts(prompts)
    valid = isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Sequence) and _number(output[1])
    if not valid or not all(type(i) is int and 0 <= i < len(prompts) for i in output[0]):
        raise broken(
            backbone,
            f"`truncated_prompts` must return indices into the {len(prompts)} prompts and a number of tokens, got "
            f"{_shown(output)}",
        )
    indices, limit = output
    return indices, limit
