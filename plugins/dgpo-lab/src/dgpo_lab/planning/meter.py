"""Tensors without values, and a meter that counts their operations (as torch does) and their allocated bytes.

A `Shape` is a tensor on torch's meta device with the dispatch keys of a CPU tensor, so that autograd and mixed
precision treat it like one. It is like torch's FakeTensor with two differences: small tensors on the host that do not
depend on large ones are real, so that the engine's bookkeeping (members, timesteps, weights) runs unchanged; and the
output shapes of operations are cached by their input shapes. Fragmentation of the allocator and workspaces of kernels
are not counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dgpo_core.errors import UserError

__all__ = ["Lap", "Meter", "Shape"]

CPU, META = torch.device("cpu"), torch.device("meta")
ASKED_FOR_DEVICE = torch.ops.prim.device.default
LARGE = 1024
"""Number of elements above which a newly created tensor has no values."""
LOOKS = 10_000
"""Maximum number of values that may be read from Shapes in a lap; more means a loop that waits for a certain value."""
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Shape(Tensor):
    """A tensor without values. Every element that is read is 1."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _in_kernel = False  # inside kernels, the device is the meta device

    @staticmethod
    def __new__(cls, meta: Tensor) -> Shape:
        made: Shape = Tensor._make_subclass(
            cls, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=CPU
        )
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is ASKED_FOR_DEVICE:
            return META if Shape._in_kernel else CPU
        raise RuntimeError(f"{function}: called with a tensor without values outside of its Meter")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return META if Shape._in_kernel else CPU

    def tolist(self) -> Any:
        return [row.tolist() for row in self] if self.dim() else self.item()


@dataclass(slots=True)
class Lap:
    """The cost of a section of work: FLOPs, peak bytes above the start, and bytes that remain allocated after it."""

    operations: int = 0
    peak: int = 0
    left: int = 0


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs and allocated bytes of the code that runs inside.

    where: the beginning of error messages; held: modules whose weights become Shapes permanently. Raises UserError if
    the code uses a meta tensor of another module, or if it loops until a certain value is reached.
    """

    def __init__(self, where: str, *held: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where = where
        self.operations = self.now = self.peak = 0
        self._looks = 0  # since the last start or end of a lap
        self._sizes: dict[int, int] = {}  # of the allocated storages
        self._known: dict[Any, Any] = {}  # outputs of operations by their inputs
        made: dict[int, Tensor] = {}  # modules may share weights
        for module in (inner for outer in held for inner in outer.modules()):
            # Some tables, such as complex ones that a buffer would lose the imaginary part of, are plain attributes.
            tables = {
                name: value for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_meta
            }
            for tensors in (module._parameters, module._buffers, tables):
                for name, tensor in tensors.items():
                    if tensor is not None and type(tensor) is not Shape:
                        tensors[name] = made.setdefault(id(tensor), self._shaped(tensor))  # type: ignore[assignment]
            vars(module).update(tables)

    def _shaped(self, tensor: Tensor) -> Tensor:
        shape: Tensor = Shape(tensor.detach().to(META))
        if isinstance(tensor, nn.Parameter):
            with self:
                shape = nn.Parameter(shape, requires_grad=tensor.requires_grad)
        self.hold(shape)
        return shape

    def hold(self, *tensors: Tensor) -> None:
        """Exclude the given tensors, or all allocated tensors, from the count because they are held permanently."""
        self._see(tensors)
        for key in [t.untyped_storage()._cdata for t in tensors] or list(self._sizes):
            self.now -= self._sizes[key]
            self._sizes[key] = 0

    @contextmanager
    def lap(self) -> Iterator[Lap]:
        """Measure a section of work; the Lap is filled in at its end. Laps may be nested."""
        lap, start, operations, peak = Lap(), self.now, self.operations, self.peak
        self.peak = start
        self._looks = 0
        yield lap
        self._looks = 0
        lap.operations, lap.peak, lap.left = self.operations - operations, self.peak - start, self.now - start
        self.peak = max(peak, self.peak)

    def again(self, lap: Lap) -> None:
        """Count a lap once more. The caller allocates the bytes that remain after it."""
        self.operations += lap.operations
        self.peak = max(self.peak, self.now + lap.peak)

    # -- operations -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is ASKED_FOR_DEVICE:
            return CPU
        kwargs = kwargs or {}
        if not (_has_shape(args) or _has_shape(kwargs.values()) or _is_large(args)):
            out = function(*args, **kwargs)
        elif function is torch.ops.aten._local_scalar_dense.default:
            self._look()
            return 1 if args[0].dtype != torch.bool else True
        else:
            out = self._without_values(function, args, kwargs)
        self.operations += _operations(function, args, kwargs, out)
        self._see(out)
        return out

    def _look(self) -> None:
        self._looks += 1
        if self._looks > LOOKS:
            raise UserError(
                f"this run cannot be planned: its sampler, its objective or its model read {LOOKS} values of a "
                "micro-batch, but a plan has no values; the number of passes must not depend on values"
            )

    def _without_values(self, function: Any, args: Any, kwargs: Any) -> Any:
        fresh = not function._schema.is_mutable and all(r.alias_info is None for r in function._schema.returns)
        key = (function, _described(args), _described(tuple(kwargs.items()))) if fresh else None
        known = self._known.get(key) if fresh else None
        if known is not None:
            return _made(known)
        put: dict[int, tuple[Tensor, Tensor]] = {}

        def on_meta(value: Any) -> Any:
            if isinstance(value, Tensor):
                if type(value) is Shape:
                    return value
                if value.is_meta:
                    raise UserError(
                        f"{self._where}: it uses a weight {tuple(value.shape)} of a module that is not in its "
                        "`components` or `offloaded_modules`; list every module with weights there, including text "
                        "encoders and decoders"
                    )
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
            return put[id(value)][1] if id(value) in put else Shape(value)  # in-place functions return their input

        args, kwargs = on_meta(args), {name: on_meta(value) for name, value in kwargs.items()}
        Shape._in_kernel = True
        try:
            with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
                torch._C._set_meta_in_tls_dispatch_include(True)
                out = function(*args, **kwargs)
        finally:
            Shape._in_kernel = False
        if fresh:
            self._known[key] = _described(out)
        return from_meta(out)

    def _see(self, out: Any) -> None:
        if isinstance(out, list | tuple):
            for value in out:
                self._see(value)
        elif isinstance(out, Tensor):
            storage = out.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _has_shape(values: Any) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if type(value) is Shape or value.is_meta:
                return True
        elif isinstance(value, list | tuple) and _has_shape(value):
            return True
    return False


def _is_large(args: Any) -> bool:
    """Return whether a factory function creates a large tensor."""
    size = args[0] if args else None
    return isinstance(size, list | tuple) and all(type(n) is int for n in size) and math.prod(size) > LARGE


def _described(value: Any) -> Any:
    """Return a hashable description of arguments without tensor values. Includes types, since True == 1 == 1.0."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_described, value)
    return type(value), value


def _made(described: Any) -> Any:
    """Create a result from its description."""
    kind, *rest = described
    if kind is Tensor:
        shape, stride, dtype = rest
        return Shape(torch.empty_strided(shape, stride, dtype=dtype, device=META))
    return kind(map(_made, rest)) if kind in (list, tuple) else rest[0]


def _operations(function: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the FLOPs of an operation: two per multiplication of a matrix product or a convolution.

    Attention counts as two matrix products, and four in the backward pass, regardless of recomputation in the kernel.
    """
    packet = function._overloadpacket
    if packet in (ATTENTION, ATTENTION_BACKWARD):
        products = (args[:3], 1) if packet is ATTENTION else (args[1:4], 2)
        attention: Callable[..., int] = sdpa_flop_count
        return attention(*(t.shape for t in products[0])) * products[1]
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
