"""Tensors without values, on a device that need not be there.

A `Shape` is a tensor on torch's meta device with the dispatch keys of a CPU or CUDA tensor: autograd, autocast and the
choice of kernels treat it like one of that device, also on a machine without it. It is like torch's FakeTensor, with
these differences: small tensors on the host are real, so that the engine's bookkeeping (members, timesteps, weights)
runs unchanged; a Shape that was computed from such tensors alone knows its values; and the shapes of outputs are
cached by those of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ASKED_FOR_DEVICE", "CPU", "CUDA", "META", "Evaluator", "Shape", "is_large", "tensors_of"]

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")
ASKED_FOR_DEVICE = torch.ops.prim.device.default
NONZERO = torch.ops.aten.nonzero.default
REPEAT = torch.ops.aten.repeat_interleave.Tensor
LARGE = 2**14
"""Number of elements above which a tensor has no values. Masks of the tokens of an image have fewer."""
Refuse = Callable[[Tensor], Exception]
"""The error for a meta tensor that is not a Shape."""


class Shape(Tensor):
    """A tensor without values. Every element that is read is 1, unless its value is known.

    place: the device that it stands for; known: its values, on the CPU.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _in_kernel = False  # inside kernels, the device is the meta device
    place: torch.device
    known: Tensor | None

    @staticmethod
    def __new__(cls, meta: Tensor, place: torch.device, known: Tensor | None = None) -> Shape:
        made: Shape = Tensor._make_subclass(
            cls, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=place
        )
        made.place, made.known = place, known
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is ASKED_FOR_DEVICE:
            return args[0].device
        raise RuntimeError(f"{function}: called with a tensor without values outside of its Meter")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return META if Shape._in_kernel else self.place

    def tolist(self) -> Any:
        host = self.cpu()  # one copy, as torch does it
        return _listed(host) if isinstance(host, Shape) else host.tolist()


def _listed(host: Tensor) -> Any:
    return [_listed(row) for row in host] if host.dim() else host.item()


class Evaluator:
    """Runs functions on Shapes: computes the outputs' shapes, and their values where all inputs have some."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._cache: dict[Any, Any] = {}  # descriptions of outputs by their inputs'

    def run(self, function: Any, args: Any, kwargs: Any, place: torch.device, given: Sequence[Tensor]) -> Any:
        """Call a function that has a Shape among its arguments, or creates a tensor without values at `place`.

        given: the tensors among the arguments.
        """
        unknown = any(type(t) is Shape and t.known is None for t in given)
        known = None if unknown else _known_values(function, args, kwargs)
        if function is NONZERO:  # every element that is not known is 1
            count = args[0].numel() if known is None else len(known)
            return Shape(torch.empty(count, args[0].dim(), dtype=torch.long, device=META), place, known)
        if function is REPEAT and kwargs.get("output_size") is None:
            count = args[0].numel() if known is None else len(known)
            return Shape(torch.empty(count, dtype=torch.long, device=META), place, known)
        out = self._shapes(function, args, kwargs, place)
        if not unknown or function._schema.is_mutable:
            _set_known(out, known, keep=function._schema.is_mutable)
        return out

    def _shapes(self, function: Any, args: Any, kwargs: Any, place: torch.device) -> Any:
        schema = function._schema
        fresh = not schema.is_mutable and all(r.alias_info is None for r in schema.returns)
        key = (function, place, _described(args), _described(tuple(kwargs.items()))) if fresh else None
        if fresh and key in self._cache:
            return _made(self._cache[key], place)
        put: dict[int, tuple[Tensor, Tensor]] = {}

        def on_meta(value: Any) -> Any:
            if isinstance(value, Tensor):
                if type(value) is Shape:
                    return value
                if value.is_meta:
                    raise self._refuse(value)
                twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
                put[id(twin)] = twin, value
                return twin
            if isinstance(value, list | tuple):
                return type(value)(map(on_meta, value))
            if isinstance(value, torch.device):
                return META
            return None if isinstance(value, torch.Generator) else value

        def from_meta(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(from_meta, value))
            if not isinstance(value, Tensor) or type(value) is Shape:
                return value
            return put[id(value)][1] if id(value) in put else Shape(value, place)  # in-place: returns its input

        args = on_meta(args)
        kwargs = {name: on_meta(value) for name, value in kwargs.items() if name != "pin_memory"}
        Shape._in_kernel = True
        try:
            with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
                torch._C._set_meta_in_tls_dispatch_include(True)
                out = function(*args, **kwargs)
        finally:
            Shape._in_kernel = False
        if fresh:
            self._cache[key] = _described(out)
        result = from_meta(out)
        put.clear()  # the recursive functions above refer to themselves, and would keep these tensors for a while
        return result


def is_large(args: Any) -> bool:
    """Return whether a factory function creates a large tensor."""
    size = args[0] if args else None
    return isinstance(size, list | tuple) and all(type(n) is int for n in size) and math.prod(size) > LARGE


def tensors_of(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results."""
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


# -- values -----------------------------------------------------------------------------------------------------------


class _UnknownError(Exception):
    """An argument has no values."""


def _known_values(function: Any, args: Any, kwargs: Any) -> Any:
    """Return the function's result on the host if all its inputs are small and known; None otherwise.

    A function that writes to one of its inputs writes to the input's known values.
    """
    if torch.Tag.nondeterministic_seeded in function.tags or "empty" in function._overloadpacket.__name__:
        return None
    try:
        args, kwargs = _values(args), {name: _values(v) for name, v in kwargs.items() if name != "pin_memory"}
        if is_large(args):
            return None
        out = function(*args, **kwargs)
    except (_UnknownError, NotImplementedError):
        return None
    return out if all(t.numel() <= LARGE for t in tensors_of(out)) else None


def _values(value: Any) -> Any:
    if isinstance(value, Shape):
        if value.known is None:
            raise _UnknownError
        return value.known
    if isinstance(value, Tensor):
        if value.is_meta or value.numel() > LARGE:
            raise _UnknownError
        return value
    if isinstance(value, list | tuple):
        return type(value)(map(_values, value))
    return CPU if isinstance(value, torch.device) else value


def _set_known(out: Any, known: Any, *, keep: bool) -> None:
    """Give the outputs their values; keep: the outputs are inputs that were written to, as their values were."""
    if keep and known is not None:
        return
    values = [None] * len(list(tensors_of(out))) if known is None else list(tensors_of(known))
    for shape, value in zip(tensors_of(out), values, strict=True):
        if isinstance(shape, Shape):
            shape.known = value


# -- shapes -----------------------------------------------------------------------------------------------------------


def _described(value: Any) -> Any:
    """Return a hashable description of arguments without tensor values. Includes types, since True == 1 == 1.0."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_described, value)
    return type(value), value


def _made(described: Any, place: torch.device) -> Any:
    """Create a result from its description."""
    kind, *rest = described
    if kind is Tensor:
        shape, stride, dtype = rest
        return Shape(torch.empty_strided(shape, stride, dtype=dtype, device=META), place)
    return kind(_made(value, place) for value in rest) if kind in (list, tuple) else rest[0]
