"""Stand-ins for libraries that a peer imports and its loop does not need.

A library that is installed is used; the libraries of models are imported first, so that they see what is really there.
Loggers and figures are replaced in any case, so that no side pays for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Nothing", "StandIn", "import_real", "replace", "stand_in"]

REAL = ("accelerate", "diffusers", "peft", "transformers")


class Nothing:
    """Whatever is called, asked for or made of it is nothing again."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> Nothing:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class StandIn(ModuleType):
    """A module in place of a library. What it is asked for does nothing."""

    __path__: list[str] = []  # so that submodules can be imported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


def import_real() -> None:
    """Import the libraries of models, before any stand-in is there."""
    for name in REAL:
        importlib.import_module(name)


def replace(name: str, **content: Any) -> ModuleType:
    """Put a module that does nothing in place of a library, with some content of its own."""
    module = StandIn(name)
    module.__spec__ = ModuleSpec(name, None)  # `find_spec` asks for it
    vars(module).update(content)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent and parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def stand_in(names: Iterable[str]) -> list[str]:
    """Replace those of the libraries that are not installed; returns their names."""
    missing = []
    for name in names:
        try:
            found = name in sys.modules or importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of a parent
            found = False
        if not found:
            replace(name)
            missing.append(name)
    return missing
