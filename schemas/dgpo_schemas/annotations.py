"""Walking through the annotations of models' fields."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["items_of", "models_of", "plain"]


def plain(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows and the marks of `Annotated` beside them, through unions but not into
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
    """The models that an annotation allows."""
    return (one for one in plain(annotation) if isinstance(one, type) and issubclass(one, BaseModel))


def items_of(annotation: Any) -> Iterator[Any]:
    """Annotations of the items, where a list is allowed."""
    return (get_args(one)[0] for one in plain(annotation) if get_origin(one) is list)
