"""Check that the methods of a plugin class are call-compatible with its contract.

The check runs when the class is loaded, so that a mismatch does not surface as a TypeError in the middle of a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

__all__ = ["misfits"]


def misfits(implementation: type, contract: type) -> Iterator[str]:
    """Yield a message for each method or attribute of a class that does not match its contract.

    Methods that take `*args` or have no signature count as matching.
    """
    contract_classes = set(contract.__mro__)
    for name in dir(contract):
        if name.startswith("_"):
            continue
        owner = next((cls for cls in implementation.__mro__ if name in vars(cls)), None)
        if owner is None or owner in contract_classes:
            continue
        expected, actual = inspect.getattr_static(contract, name), inspect.getattr_static(implementation, name)
        if not _is_method(expected):
            if inspect.isfunction(actual):
                yield f"{name} must be an attribute or a property, got a method: add @property"
        elif not (_is_method(actual) or callable(getattr(implementation, name)) or isinstance(actual, property)):
            yield f"{name} must be a method, got {type(actual).__name__}"
        elif not isinstance(actual, property) and not _fits(getattr(implementation, name), getattr(contract, name)):
            signature, required = (_shown(getattr(cls, name)) for cls in (implementation, contract))
            yield f"{name}{signature} cannot be called as {name}{required}"


def _is_method(attribute: object) -> bool:
    return inspect.isfunction(attribute) or isinstance(attribute, classmethod | staticmethod)


def _shown(method: object) -> str:
    signature = inspect.signature(method)  # type: ignore[arg-type]
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _fits(actual: object, expected: object) -> bool:
    """Whether `actual` accepts the positional and keyword-only arguments of `expected`."""
    try:
        signature = inspect.signature(actual, follow_wrapped=False)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    parameters = inspect.signature(expected).parameters.values()  # type: ignore[arg-type]
    args = [None for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kwargs = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
