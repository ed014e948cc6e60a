"""The version of the plugin contract, and how a class made for another one is recognised.

A method that was renamed or lost a parameter fails in the middle of a run with a TypeError, or is never called again.
Both are told when a part's class is loaded, with the signature as it was and as it is. A row here is one change; what
was only added needs none, since older plugins go on working.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ATTRIBUTE", "CHANGED", "CHANGES", "GUIDE", "VERSION", "Change", "changes_in", "why_not"]

VERSION = 2
"""Raised by one whenever an existing plugin of some kind would have to change."""
ATTRIBUTE = "dgpo_contract"
"""The name by which a plugin module may say the version that it was made for: `dgpo_contract = 2`."""
GUIDE = "docs/migrating.md"


@dataclass(frozen=True, slots=True)
class Change:
    """One method or attribute of a kind's contract that older plugins have otherwise.

    was, now: the signature then, and what it became; parameter: the one by whose name the old signature is known, None
    where the whole name is gone; instead: the parameter, or the attribute, that a class of today has in its place;
    sign: for a name that is gone, those that every class of then had to have, since one alone may be a helper's.
    """

    kind: str
    method: str
    was: str
    now: str
    parameter: str | None
    instead: str
    sign: tuple[str, ...] = ()


_SIGN = ("without_adapter", "save_adapter")
_ADAPTER = "adapter -> contracts.Adapter | None"

CHANGES: tuple[Change, ...] = (
    Change(
        "backbone", "encode", "encode(texts: Sequence[str]) -> Conditioning",
        "encode(prompts: Sequence[Prompt]) -> Conditioning", "texts", "prompts",
    ),
    Change(
        "backbone", "unread", "unread(texts: Sequence[str])", "unread(prompts: Sequence[Prompt])", "texts", "prompts"
    ),
    Change("backbone", "without_adapter", "without_adapter()", f"{_ADAPTER}: Adapter.off()", None, "adapter", _SIGN),
    Change("backbone", "merged", "merged()", f"{_ADAPTER}: Adapter.merged()", None, "adapter", _SIGN),
    Change(
        "backbone", "save_adapter", "save_adapter(directory)",
        f"{_ADAPTER}: Adapter.save(directory, format); with train: full, save_weights(directory)",
        None, "adapter", _SIGN,
    ),
    Change(
        "backbone", "save_adapter_as", "save_adapter_as(format, directory)",
        f"{_ADAPTER}: Adapter.save(directory, format)", None, "adapter", _SIGN,
    ),
    Change("backbone", "formats", "formats", f"{_ADAPTER}: Adapter.formats", None, "adapter", _SIGN),
    Change(
        "sampler", "sigmas", "sigmas(steps: int, shift: float)", "sigmas(steps: int, schedule: Schedule)",
        "shift", "schedule",
    ),
    Change(
        "sampler", "sample", "sample(velocity, noise, *, steps, shift, ...)",
        "sample(velocity, noise, *, steps, schedule, ...)", "shift", "schedule",
    ),
)  # fmt: skip
"""From version 1 to 2."""

CHANGED = frozenset(change.kind for change in CHANGES)
"""Kinds of which an older class has to be looked at."""


def changes_in(kind: str, implementation: type, contract: type) -> Iterator[Change]:
    """The changes that a class was not made for. What cannot be known, because it takes `*args` or has no signature, is
    not held against it."""
    for change in CHANGES:
        if change.kind == kind and _holds(change, contract) and _is_older(change, implementation, contract):
            yield change


def why_not(declared: int | None, changes: Sequence[Change] = ()) -> str:
    """What is said of a part that was made for another version: `declared`, or the one before the changes."""
    if declared is not None and declared > VERSION:
        way = "install a newer dgpo"
    else:
        way = f"install a newer version of the plugin, or a dgpo from before version {VERSION} of the contract"
    lines = [f"made for version {declared} of dgpo's plugin contract, and this dgpo has version {VERSION}: {way}"]
    lines += [f"{change.was} became {change.now}" for change in changes]
    return "\n  ".join([*lines, f"how to change a plugin: {GUIDE}"])


def _holds(change: Change, contract: type) -> bool:
    """Whether the contract has changed so; a row must not speak of what it still has."""
    method = getattr(contract, change.method, None)
    if change.parameter is None:
        return method is None
    return callable(method) and change.parameter not in inspect.signature(method).parameters


def _is_older(change: Change, implementation: type, contract: type) -> bool:
    if not _overrides(implementation, change.method, contract):
        return False
    if change.parameter is None:
        signs = all(_overrides(implementation, name, contract) for name in change.sign)
        return signs and not _overrides(implementation, change.instead, contract)
    found = _parameters(implementation, change.method)
    if found is None or (change.instead in found and not _says_texts(found[change.instead])):
        return False
    if change.parameter in found:
        return not _says_prompts(found[change.parameter])
    return change.parameter == "texts" and any(map(_says_texts, found.values()))


def _overrides(implementation: type, name: str, contract: type) -> bool:
    """Whether the class, or one of its bases that is not the contract's own, has a name of its own."""
    own = set(contract.__mro__)
    return any(name in vars(one) for one in implementation.__mro__ if one not in own)


def _parameters(implementation: type, name: str) -> Mapping[str, inspect.Parameter] | None:
    """Parameters of a method by name, of what a decorator wraps if the decorator takes anything; None if unknown."""
    method = getattr(implementation, name)
    try:
        outer = inspect.signature(method, follow_wrapped=False).parameters
        anything = any(p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD for p in outer.values())
        found = inspect.signature(method).parameters if anything else outer
    except (TypeError, ValueError):
        return None
    return found


def _says_texts(parameter: inspect.Parameter) -> bool:
    """Whether its annotation is of texts, and not of prompts."""
    return bool(re.search(r"\bstr\b", _written(parameter))) and not _says_prompts(parameter)


def _says_prompts(parameter: inspect.Parameter) -> bool:
    return "Prompt" in _written(parameter)


def _written(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return "" if annotation is parameter.empty else inspect.formatannotation(annotation)
