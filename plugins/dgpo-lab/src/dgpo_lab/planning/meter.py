"""A meter of code that runs on tensors without values: operations, kernels, host copies and allocated bytes.

Fragmentation of the allocator and workspaces of kernels are not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgpo_core.errors import UserError
from dgpo_lab.planning.copies import Copy, Pinned, copy_of
from dgpo_lab.planning.imitation import imitated
from dgpo_lab.planning.kernels import Kernel, kernels_of, model_operations
from dgpo_lab.planning.shapes import ASKED_FOR_DEVICE, CPU, CUDA, META, Evaluator, Shape, is_large, tensors_of

__all__ = ["Counted", "Lap", "Meter", "Shape"]

LOOKS = 10_000
"""Maximum number of values that may be read from Shapes in a lap; more means a loop that waits for a certain value."""
READ = torch.ops.aten._local_scalar_dense.default
PINNING = (torch.ops.aten._pin_memory.default, torch.ops.aten.is_pinned.default)


@dataclass(slots=True)
class Counted:
    """What a section of work did.

    operations: FLOPs as the model defines them; kernels: launches on the device, and how many are alike; copies:
    between host and device; dispatches: operators that the host called on tensors of the device, views included.
    """

    operations: int = 0
    dispatches: int = 0
    kernels: Counter[Kernel] = field(default_factory=Counter)
    copies: Counter[Copy] = field(default_factory=Counter)

    def add(self, other: Counted) -> None:
        """Add what another section did."""
        self.operations += other.operations
        self.dispatches += other.dispatches
        self.kernels.update(other.kernels)
        self.copies.update(other.copies)

    @property
    def launches(self) -> int:
        """The number of kernels."""
        return self.kernels.total()

    @property
    def blocking(self) -> Counter[Copy]:
        """The copies that the host waits for."""
        return Counter({copy: count for copy, count in self.copies.items() if copy.blocking})


@dataclass(slots=True)
class Lap(Counted):
    """The cost of a section of work: what it did, its peak bytes above the start, and bytes that remain after it."""

    peak: int = 0
    left: int = 0


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the code that runs inside does on a device, which need not be there.

    where: the beginning of error messages; held: modules whose weights become Shapes permanently; device: the CPU, or
    CUDA, whose rules then apply: autocast, fused kernels, copies between host and device. Raises UserError if the code
    uses a meta tensor of another module, or if it loops until a certain value is reached, and RuntimeError if it mixes
    tensors of host and device.
    """

    def __init__(self, where: str, *held: nn.Module, device: torch.device = CUDA) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where, self.device = where, device
        self.counted = Counted()
        self.now = self.peak = 0
        self._looks = 0  # since the last start or end of a lap
        self._sizes: dict[int, int] = {}  # of the allocated storages
        self._pinned = Pinned()
        self._evaluator = Evaluator(self._foreign)
        self._imitated: list[AbstractContextManager[None]] = []
        made: dict[int, Tensor] = {}  # modules may share weights
        with self:
            for module in (inner for outer in held for inner in outer.modules()):
                self._replace(module, made)

    def __enter__(self) -> Meter:
        context = imitated() if self.device.type == "cuda" else nullcontext()
        context.__enter__()
        self._imitated.append(context)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._imitated.pop().__exit__(*error)

    # -- weights ------------------------------------------------------------------------------------------------------

    def _replace(self, module: nn.Module, made: dict[int, Tensor]) -> None:
        # Some tables, such as complex ones that a buffer would lose the imaginary part of, are plain attributes.
        tables = {name: value for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_meta}
        for tensors in (module._parameters, module._buffers, tables):
            for name, tensor in tensors.items():
                if tensor is not None and type(tensor) is not Shape:
                    tensors[name] = made.setdefault(id(tensor), self._shaped(tensor))  # type: ignore[assignment]
        vars(module).update(tables)

    def _shaped(self, tensor: Tensor) -> Tensor:
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
            shape: Tensor = Shape(meta, self.device)
        if isinstance(tensor, nn.Parameter):
            shape = nn.Parameter(shape, requires_grad=tensor.requires_grad)
        self.hold(shape)
        return shape

    def _foreign(self, tensor: Tensor) -> Exception:
        return UserError(
            f"{self._where}: it uses a weight {tuple(tensor.shape)} of a module that is not in its `components` or "
            "`offloaded_modules`; list every module with weights there, including text encoders and decoders"
        )

    def hold(self, *tensors: Tensor) -> None:
        """Exclude the given tensors, or all allocated tensors, from the count because they are held permanently."""
        for tensor in tensors:
            self._see(tensor)
        for key in [t.untyped_storage()._cdata for t in tensors] or list(self._sizes):
            self.now -= self._sizes[key]
            self._sizes[key] = 0

    # -- laps ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def lap(self) -> Iterator[Lap]:
        """Measure a section of work; the Lap is filled in at its end. Laps may be nested."""
        lap, start, peak, outer = Lap(), self.now, self.peak, self.counted
        self.peak, self.counted = start, Counted()
        self._looks = 0
        yield lap
        self._looks = 0
        lap.add(self.counted)
        lap.peak, lap.left = self.peak - start, self.now - start
        outer.add(self.counted)
        self.peak, self.counted = max(peak, self.peak), outer

    def again(self, lap: Lap) -> None:
        """Count a lap once more. The caller allocates the bytes that remain after it."""
        self.counted.add(lap)
        self.peak = max(self.peak, self.now + lap.peak)

    # -- operators ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is ASKED_FOR_DEVICE:
            return args[0].device
        kwargs = kwargs or {}
        given = list(tensors_of((*args, *kwargs.values())))
        place = self._place(function, args, kwargs, given)
        out = self._run(function, args, kwargs, place, given)
        if place == self.device:
            self.counted.operations += model_operations(function, args, kwargs, out)
            self.counted.dispatches += 1
            for tensor in tensors_of(out):
                self._see(tensor)
        return out

    def _run(self, function: Any, args: Any, kwargs: Any, place: torch.device, given: Sequence[Tensor]) -> Any:
        copied = copy_of(function, args, kwargs, given, place, self._pinned)
        if copied is not None:
            self.counted.copies[copied] += 1
        if function in PINNING:
            return self._pin(function, args[0])
        pin = kwargs.get("pin_memory") and place.type == "cpu" and self.device.type == "cuda"
        if pin:
            kwargs = kwargs | {"pin_memory": False}
        if not (any(type(t) is Shape or t.is_meta for t in given) or place.type == "cuda" or is_large(args)):
            out = function(*args, **kwargs)
        elif function is READ:
            return self._look(args[0])
        else:
            out = self._evaluator.run(function, args, kwargs, place, given)
        if pin:
            self._pinned.add(out)
        if place == self.device and (copied is None or copied.within):
            self.counted.kernels.update(kernels_of(function, args, kwargs, out))
        return out

    def _pin(self, function: Any, tensor: Tensor) -> Any:
        if function is torch.ops.aten.is_pinned.default:
            return tensor in self._pinned
        pinned = tensor.clone()
        self._pinned.add(pinned)
        return pinned

    def _look(self, tensor: Tensor) -> Any:
        """Return the value of a scalar: its own if it is known, otherwise 1."""
        if isinstance(tensor, Shape) and tensor.known is not None:
            return tensor.known.item()
        self._looks += 1
        if self._looks > LOOKS:
            raise UserError(
                f"this run cannot be planned: its sampler, its objective or its model read {LOOKS} values of a "
                "micro-batch, but a plan has no values; the number of passes must not depend on values"
            )
        return 1 if tensor.dtype != torch.bool else True

    def _place(self, function: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> torch.device:
        """Return the device on which a call creates its outputs."""
        asked = kwargs.get("device")
        if asked is not None:
            return self.device if torch.device(asked).type == self.device.type else torch.device(asked)
        if function._overloadpacket.__name__ == "copy_":
            target: torch.device = args[0].device
            return target
        return self.device if any(type(t) is Shape and t.place == self.device for t in given) else CPU

    # -- memory -------------------------------------------------------------------------------------------------------

    def _see(self, tensor: Tensor) -> None:
        if tensor.device != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
