"""Whether a class's methods can be called as its contract's are: told when the class is loaded, and not by a TypeError
in the middle of a run, or by a method that is taken for the value of an attribute."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

__all__ = ["misfits"]


def misfits(implementation: type, contract: type) -> Iterator[str]:
    """What of a class does not fit, in words. What cannot be known, because it takes `*args` or has no signature, is
    not held against it."""
    own = set(contract.__mro__)
    for name in dir(contract):
        if name.startswith("_"):
            continue
        owner = next((one for one in implementation.__mro__ if name in vars(one)), None)
        if owner is None or owner in own:
            continue
        promised, found = inspect.getattr_static(contract, name), inspect.getattr_static(implementation, name)
        if not _is_method(promised):
            if inspect.isfunction(found):
                yield f"{name} is an attribute or a property, and here it is a method: write @property above it"
        elif not (_is_method(found) or callable(getattr(implementation, name)) or isinstance(found, property)):
            yield f"{name} is a method, and here it is {type(found).__name__}"
        elif not isinstance(found, property) and not _fits(getattr(implementation, name), getattr(contract, name)):
            theirs, ours = (_shown(getattr(one, name)) for one in (implementation, contract))
            yield f"{name}{theirs} cannot be called as {name}{ours}"


def _is_method(attribute: object) -> bool:
    return inspect.isfunction(attribute) or isinstance(attribute, classmethod | staticmethod)


def _shown(method: object) -> str:
    signature = inspect.signature(method)  # type: ignore[arg-type]
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _fits(found: object, promised: object) -> bool:
    """Whether a method takes the arguments of the other's parameters: by their places, or by names where these are for
    names only."""
    try:
        theirs = inspect.signature(found, follow_wrapped=False)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    ours = inspect.signature(promised).parameters.values()  # type: ignore[arg-type]
    places = [None for p in ours if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = {p.name: None for p in ours if p.kind is p.KEYWORD_ONLY}
    try:
        theirs.bind(*places, **names)
    except TypeError:
        return False
    return True
