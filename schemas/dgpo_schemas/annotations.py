"""Traversal of the type annotations of model fields."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["items_of", "models_of", "plain"]


def plain(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows and the metadata of `Annotated`, looking through unions but not into
    containers."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from annotation.__metadata__
        yield from plain(annotation.__origin__)
    elif origin in (Union, UnionType):
        for branch in get_args(annotation):
            yield from plain(branch)
    else:
        yield annotation


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that an annotation allows."""
    return (kind for kind in plain(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))


def items_of(annotation: Any) -> Iterator[Any]:
    """Yield the item annotations of the lists that an annotation allows."""
    return (get_args(kind)[0] for kind in plain(annotation) if get_origin(kind) is list)
