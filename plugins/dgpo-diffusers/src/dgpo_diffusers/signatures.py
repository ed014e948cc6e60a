"""Signatures of attention processors, read once.

Most attention layers of diffusers call `inspect.signature(self.processor.__call__)` in every forward pass, to drop
keyword arguments that the processor does not know. This takes 0.1 to 0.2 ms of the host each time, up to a tenth of a
small layer's time, and nothing of it depends on the inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["remember_signatures"]


class _Call:
    """Stands for a processor's `__call__` where it is looked up by name, with its signature at hand.

    A call of the processor itself uses the method of its class and does not come here.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.__signature__ = inspect.signature(call)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._call(*arguments, **keywords)


def remember_signatures(network: nn.Module) -> None:
    """Keep the signatures of the attention processors of a network; a processor that is set later is as before."""
    for module in network.modules():
        processor = getattr(module, "processor", None)
        if processor is None or not hasattr(processor, "__dict__") or isinstance(processor.__call__, _Call):
            continue
        processor.__call__ = _Call(processor.__call__)
