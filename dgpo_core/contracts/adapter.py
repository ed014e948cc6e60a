"""The contract of adapters: a few trained weights beside a model's frozen ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Adapter"]


class Adapter(ABC):
    """What is trained with `train: lora`, while the weights it is put on stay as they are.

    A backbone makes one and keeps it as `Backbone.adapter`; the engine asks it for all that has to do with it.
    `dgpo_core.lora.LoraAdapter` is one for any network, through peft.
    """

    formats: tuple[str, ...]
    """What `save` can write (`dgpo export --format`), the usual one first; words of a-z, 0-9 and dashes. Of the class,
    or of the object where it depends on the model."""

    @abstractmethod
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The adapter's own parameters, float32, by their names in `Backbone.module`; always the same ones. They carry
        a gradient, and start so that `off` changes nothing. The engine exchanges them through `parameter.data`."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """A context in which the network runs the base weights; afterwards everything is as it was, also after an
        error, and also within another such context."""

    def merged(self) -> AbstractContextManager[None] | None:
        """A context in which the adapter as it is now is added into the base weights, so that the network costs what
        the base costs. Afterwards these are bit for bit as before, also after an error. None, the default, if that
        cannot be done."""
        return None

    @abstractmethod
    def save(self, directory: Path, format: str) -> None:
        """Write the parameters in place now in one of `formats` into a directory, which may be new.

        Programs that know nothing of an adapter's alpha must apply its whole strength: fold the scale into a matrix.
        """
