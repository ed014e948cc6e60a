"""The adapter contract: a small set of trained weights added to a frozen model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Adapter"]


class Adapter(ABC):
    """The trained weights of a run with `train: lora`; the base weights stay frozen.

    A backbone creates its adapter and stores it in `Backbone.adapter`; the engine calls the adapter directly.
    `dgpo_core.lora.LoraAdapter` implements this contract for any network, using peft.
    """

    formats: tuple[str, ...]
    """Formats that `save` can write (`dgpo export --format`), the default first. Names contain a-z, 0-9 and dashes. A
    class attribute, or an instance attribute if the formats depend on the model."""
    supports: frozenset[str] = frozenset()
    """Optional keys of `backbone.lora` that the adapter implements: `init`, `rslora`, `dora`. A run
    file that sets another fails."""
    source: Path | None = None
    """File that the adapter was initialized from; runs store its digest."""
    notes: Sequence[str] = ()
    """What users should know about how the adapter was initialized; shown once, at the start of a run."""

    @abstractmethod
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Return the adapter's parameters, float32, keyed by their names in `Backbone.module`.

        Every call returns the same parameter objects. They require gradients and are initialized so that the network
        computes the same output as with `off`, or as with the adapter in `backbone.lora.init`. The engine swaps their
        values through `parameter.data`.
        """

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """Return a context manager that disables the adapter, so that the network runs the base weights.

        It restores the previous state on exit, including after an exception, and can be nested.
        """

    def speed_up(self, dtype: torch.dtype) -> None:
        """Compute the adapter in `dtype`, that of the frozen weights, from now on (`precision.adapter: fast`).

        `parameters` and their gradients stay float32. Called before the first pass, by `Backbone.speed_up`, and only if
        the backbone's `supports_fast` contains "adapter".
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement speed_up")

    def weights_changed(self) -> None:  # noqa: B027
        """The values of `parameters` have changed: by an update, or because another model was activated.

        Called before the next pass with the adapter. An adapter that computes with copies renews them here. By default
        does nothing.
        """

    def merged(self) -> AbstractContextManager[None] | None:
        """Return a context manager that merges the current adapter into the base weights for faster inference.

        On exit it restores the base weights bit for bit, including after an exception. Returns None, the default, if
        the adapter does not support merging.
        """
        return None

    @abstractmethod
    def save(self, directory: Path, format: str) -> None:
        """Write the current parameters to `directory`, created if missing, in one of `formats`.

        Fold the LoRA scale into one of the matrices, so that programs that ignore alpha apply the adapter at full
        strength.
        """
