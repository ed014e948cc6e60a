"""What a backbone gives, looked at where the engine takes it.

A network that answers with another shape, or rows that lie about their lengths, would end in a traceback far from its
cause, or in a run that learns something else: tensors of other shapes often broadcast. Each function here raises
PluginError with the backbone and the promise, and looks at nothing that would make the device be waited for.
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
SHOWN = 100
TIMES = 9
"""Times at which the weights of errors are looked at before a run."""


def broken(backbone: Backbone, what: str) -> PluginError:
    """The backbone by its name and class, and what it does that it should not."""
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
    """Of a backbone that was just made: what it is, trains and knows."""
    if getattr(backbone, "section", None) is None or not hasattr(backbone, "options"):
        raise broken(backbone, "its __init__ does not call super().__init__(section, options, device=device)")
    from dgpo_core.contracts import Adapter

    if not (backbone.adapter is None or isinstance(backbone.adapter, Adapter)):
        raise broken(backbone, f"`adapter` is None or a contracts.Adapter, not {_shown(backbone.adapter)}")
    if backbone.adapter is not None:
        _formats(backbone, backbone.adapter.formats)
    if not isinstance(backbone.module, torch.nn.Module):
        raise broken(backbone, f"`module` is a torch.nn.Module, not {_shown(backbone.module)}")
    if not isinstance(backbone.supports_guidance, bool):
        raise broken(backbone, f"`supports_guidance` is True or False, not {_shown(backbone.supports_guidance)}")
    if backbone.media not in ("image", "video"):
        raise broken(backbone, f"`media` is 'image' or 'video', not {_shown(backbone.media)}")
    fps: object = backbone.fps
    if fps is not None and not (_number(fps) and 0 < float(fps) < math.inf):  # type: ignore[arg-type]
        raise broken(backbone, f"`fps` is a number of frames a second above 0, or None for images, not {_shown(fps)}")
    _range(backbone)
    _trained(backbone)


def _formats(backbone: Backbone, found: object) -> None:
    """A run whose adapter cannot be written would end with nothing in hand."""
    sound = isinstance(found, tuple | list) and found and all(isinstance(f, str) and FORMAT.match(f) for f in found)
    if not sound:
        raise broken(backbone, f"`adapter.formats` is a tuple of words of a-z, 0-9 and dashes, not {_shown(found)}")


def _range(backbone: Backbone) -> None:
    found: object = backbone.sigma_range
    sound = isinstance(found, Sequence) and len(found) == 2 and all(map(_number, found))
    if not sound or not 0 <= found[0] < found[1] <= 1:  # type: ignore[index]
        raise broken(backbone, f"`sigma_range` is two numbers, 0 <= low < high <= 1, not {_shown(found)}")


def _trained(backbone: Backbone) -> None:
    found: object = backbone.trainable()
    if not isinstance(found, Mapping):
        raise broken(backbone, f"`trainable` gives parameters by their names, not {_shown(found)}")
    if not found:
        what = "its adapter has no parameters" if backbone.adapter is not None else "no parameter requires a gradient"
        raise broken(backbone, f"nothing is trained: {what}")
    inside = {id(parameter) for parameter in backbone.module.parameters()}
    for name, parameter in found.items():
        if not isinstance(name, str) or not isinstance(parameter, torch.nn.Parameter):
            raise broken(backbone, f"`trainable` has {_shown(name)}: {_shown(parameter)}, which is no nn.Parameter")
        if parameter.dtype not in FLOATS:
            raise broken(backbone, f"`trainable`: {name} is {parameter.dtype}, and trained weights are float32")
        if not parameter.requires_grad:
            raise broken(backbone, f"`trainable`: {name} requires no gradient, so it would never change")
        if id(parameter) not in inside:
            raise broken(
                backbone, f"`trainable`: {name} is no parameter of `module`, so nothing would be learned by it"
            )


def latent_shape(backbone: Backbone, size: tuple[int, int]) -> tuple[int, ...]:
    """That of samples of this size (height, width)."""
    found: object = backbone.latent_shape(*size)
    if not (isinstance(found, tuple) and found and all(type(n) is int and n > 0 for n in found)):
        raise broken(
            backbone,
            f"`latent_shape` of {size[0]}x{size[1]} is a tuple of whole numbers above 0, not {_shown(found)}",
        )
    return tuple(found)


def bucket(backbone: Backbone, prompt: Prompt) -> Hashable:
    """That of a prompt, the same whenever it is asked for: processes have to agree on it."""
    found, again = backbone.bucket(prompt), backbone.bucket(prompt)
    try:
        same = bool(found == again) and hash(found) == hash(again)
    except Exception as error:
        raise broken(backbone, f"`bucket` gives what can be hashed and compared, not {_shown(found)}") from error
    if not same:
        raise broken(backbone, f"`bucket` of one prompt is {_shown(found)} and then {_shown(again)}: it is one value")
    return found


@contextmanager
def entered(backbone: Backbone, context: AbstractContextManager[None] | None, what: str) -> Iterator[None]:
    """A context that the backbone or its adapter gave as `what`."""
    if not (hasattr(context, "__enter__") and hasattr(context, "__exit__")):
        raise broken(backbone, f"`{what}` gives a context to enter, not {_shown(context)}")
    assert context is not None
    with context:
        yield


def conditioning(backbone: Backbone, row: Conditioning, what: str) -> None:
    """One row that `encode` or `unconditional` (`what`) gave for one prompt."""
    if not isinstance(row, Conditioning) or not isinstance(row.tensors, Mapping) or not row.tensors:
        raise broken(backbone, f"`{what}` gives a Conditioning of tensors, not {_shown(row)}")
    device = torch.device(backbone.device)
    for name, tensor in row.tensors.items():
        if not isinstance(tensor, Tensor):
            raise broken(backbone, f"`{what}`: {name} is a tensor, not {_shown(tensor)}")
        if tensor.dim() < 1 or len(tensor) != 1:
            raise broken(backbone, f"`{what}`: {name} has one row a prompt, not {_shown(tensor)} for one prompt")
        if tensor.requires_grad:
            raise broken(backbone, f"`{what}`: {name} has no gradient: encode under torch.no_grad()")
        if tensor.device.type != device.type:
            raise broken(backbone, f"`{what}`: {name} is on the model's device {device}, not {_shown(tensor)}")
    if not isinstance(row.lengths, Mapping):
        raise broken(backbone, f"`{what}`: `lengths` has the lengths of rows by names, not {_shown(row.lengths)}")
    for name, lengths in row.lengths.items():
        if name not in row.tensors:
            raise broken(backbone, f"`{what}`: `lengths` names {_shown(name)}, and there is no such tensor")
        tensor = row.tensors[name]
        if tensor.dim() < 2:
            raise broken(backbone, f"`{what}`: {name} has `lengths`, so it is [B, L, ...], not {_shown(tensor)}")
        if not isinstance(lengths, tuple) or [(type(n), n) for n in lengths] != [(int, tensor.shape[1])]:
            raise broken(
                backbone,
                f"`{what}`: `lengths` of {name} is ({tensor.shape[1]},), as long as its one row, not {_shown(lengths)}",
            )


def velocity(backbone: Backbone, found: Tensor, x_sigma: Tensor, what: str = "velocity") -> Tensor:
    """What the network said at x_sigma."""
    if not isinstance(found, Tensor) or found.shape != x_sigma.shape or found.dtype not in FLOATS:
        raise broken(backbone, f"`{what}` gives float32 {tuple(x_sigma.shape)}, as its x_sigma, not {_shown(found)}")
    return found


class Checked:
    """A backbone's network whose velocities are looked at (`flow.Guided`)."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """That of the backbone."""
        return velocity(self._backbone, self._backbone.velocity(x_sigma, sigma, conditioning), x_sigma)

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """That of the backbone."""
        found = self._backbone.guide(conditional, unconditional, guidance, x_sigma=x_sigma, sigma=sigma)
        return velocity(self._backbone, found, x_sigma, "guide")


def start(backbone: Backbone, sigma: float) -> float:
    """The scale of noise at the first time."""
    found: object = backbone.start(sigma)
    if not (_number(found) and 0 < float(found) < math.inf):  # type: ignore[arg-type]
        raise broken(backbone, f"`start` at sigma {sigma:.4g} is a number above 0, not {_shown(found)}")
    return float(found)  # type: ignore[arg-type]


def loss_weight(backbone: Backbone, sigma: Tensor) -> Tensor | None:
    """Weights of squared errors at sigma [B]."""
    found = backbone.loss_weight(sigma)
    if found is None:
        return None
    sound = isinstance(found, Tensor) and found.shape == sigma.shape and found.device == sigma.device
    if not sound or found.dtype != sigma.dtype or found.requires_grad:
        raise broken(
            backbone,
            f"`loss_weight` is None, or a tensor like its sigma, {_shown(sigma)}, without gradient, not "
            f"{_shown(found)}{' with a gradient' if sound and found.requires_grad else ''}",
        )
    return found


def weights_of_errors(backbone: Backbone, low: float, high: float) -> None:
    """The weights at a few times of a run's training: finite, none negative, not all of them 0."""
    sigma = torch.linspace(low, high, TIMES, device=backbone.device)
    found = loss_weight(backbone, sigma)
    if found is None or found.device.type == "meta":
        return
    if not bool((found.isfinite() & (found >= 0)).all()) or not bool(found.any()):
        shown = ", ".join(
            f"{weight:.3g} at {time:.3g}" for time, weight in zip(sigma.tolist(), found.tolist(), strict=True)
        )
        raise broken(backbone, f"`loss_weight` is finite, not negative, and not 0 at every time: it is {shown}")


def media(backbone: Backbone, found: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """What `decode` gave for samples of these prompts, which have one size."""
    size = prompts[0].size
    if size is None:  # of a rollout that was not made by a RolloutSampler
        return found
    dims, shown = (4, "[B, 3, H, W]") if backbone.media == "image" else (5, "[B, F, 3, H, W]")
    wanted = (len(prompts), 3, *size)
    sound = isinstance(found, Tensor) and found.dim() == dims and (len(found), *found.shape[-3:]) == wanted
    if not sound or not found.dtype.is_floating_point:
        raise broken(
            backbone,
            f"`decode` gives {backbone.media}s {shown} with B, H, W = {len(prompts)}, {size[0]}, {size[1]}, float32 in "
            f"[0, 1], not {_shown(found)}",
        )
    return found.detach()


def truncated_prompts(backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
    """Which prompts no text encoder reads to their end, and how many tokens are read."""
    found: Any = backbone.truncated_prompts(prompts)
    sound = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Sequence) and _number(found[1])
    if not sound or not all(type(i) is int and 0 <= i < len(prompts) for i in found[0]):
        raise broken(
            backbone,
            f"`truncated_prompts` gives indices of some of the {len(prompts)} prompts and a number of tokens, "
            f"not {_shown(found)}",
        )
    places, limit = found
    return places, limit
