"""The version of the plugin contract, and how a plugin made for another version is recognized.

A method that was renamed or lost a parameter would fail in the middle of a run with a TypeError, or would never be
called. Both are reported when a component's class is loaded, with the signature before and after. A row is one change.
Additions need no row, since older plugins keep working.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "ATTRIBUTE",
    "CHANGED",
    "CHANGES",
    "DECLARATIONS",
    "GUIDE",
    "HOOKS",
    "OLDER",
    "VERSION",
    "Change",
    "attributes_in",
    "changes_in",
    "made_for",
    "renamed_declaration",
    "why_not",
]

VERSION = 3
"""Incremented whenever existing plugins of some kind have to change."""
ATTRIBUTE = "dgpo_contract"
"""The attribute of a plugin module that states the version it was made for: `dgpo_contract = 3`."""
GUIDE = "docs/migrating.md"
OLDER = f"{VERSION - 1} or older"
"""The version of a plugin of which no more is known."""

DECLARATIONS: Mapping[str, str] = {"Part": "Component"}
"""Names of `dgpo_core.hookspecs` before version 3, and their names since."""
HOOKS: Mapping[str, str] = {"dgpo_places": "dgpo_reward_transports"}
"""Hooks before version 3, and their names since."""


@dataclass(frozen=True, slots=True)
class Change:
    """One method or attribute of a kind's contract that changed.

    was, now: the signature before and after; parameter: the parameter that identifies the old signature, None if the
    name itself was removed; instead: the parameter or attribute that replaces it; sign: for a removed name, the names
    that every class of that version had to define, since a single one may be a helper; since: the version that made the
    change.
    """

    kind: str
    method: str
    was: str
    now: str
    parameter: str | None
    instead: str
    sign: tuple[str, ...] = ()
    since: int = 2


_SIGN = ("without_adapter", "save_adapter")
_ADAPTER = "adapter -> contracts.Adapter | None"

CHANGES: tuple[Change, ...] = (
    Change(
        "backbone", "encode", "encode(texts: Sequence[str]) -> Conditioning",
        "encode(prompts: Sequence[Prompt]) -> Conditioning", "texts", "prompts",
    ),
    Change(
        "backbone", "unread", "unread(texts: Sequence[str])", "truncated_prompts(prompts: Sequence[Prompt])",
        "texts", "prompts",
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
    Change(
        "backbone", "unread", "unread(prompts)", "truncated_prompts(prompts)", None, "truncated_prompts", since=3
    ),
    Change(
        "backbone", "sketch", "sketch(section, options)", "meta_model(section, options)", None, "meta_model", since=3
    ),
    Change("backbone", "visitors", "visitors()", "offloaded_modules()", None, "offloaded_modules", since=3),
    Change("backbone", "parts", "parts()", "components()", None, "components", since=3),
    Change("backbone", "guidable", "guidable", "supports_guidance", None, "supports_guidance", since=3),
    Change("reward", "elsewhere", "elsewhere", "is_remote", None, "is_remote", since=3),
)  # fmt: skip
"""The changes of version 2, then those of version 3."""

CHANGED = frozenset(change.kind for change in CHANGES)
"""Kinds whose classes are inspected before a run."""


def changes_in(kind: str, implementation: type, contract: type) -> Iterator[Change]:
    """The changes that a class was not made for, one for each name. A signature that cannot be determined, for example
    because it takes `*args`, is accepted."""
    seen: set[str] = set()
    for change in CHANGES:
        if change.kind != kind or change.method in seen:
            continue
        if _holds(change, contract) and _is_older(change, implementation, contract):
            seen.add(change.method)
            yield change


def attributes_in(kind: str, made: object) -> Iterator[Change]:
    """The changes that a built component was not made for: attributes that its `__init__` sets under an old name, which
    the class does not show and nothing reads any more."""
    own = vars(made) if hasattr(made, "__dict__") else {}
    for change in CHANGES:
        is_old = change.method in own and change.instead not in own
        if change.kind == kind and change.parameter is None and not change.sign and is_old:
            yield change


def made_for(changes: Sequence[Change]) -> int:
    """The newest version that a class with these changes can have been made for."""
    return min(change.since for change in changes) - 1


def renamed_declaration(name: str) -> str | None:
    """The message for a name that `dgpo_core.hookspecs` had before version 3; None for any other name."""
    if name not in DECLARATIONS:
        return None
    return why_not(OLDER, [f"dgpo_core.hookspecs.{name} became dgpo_core.hookspecs.{DECLARATIONS[name]}"])


def why_not(declared: int | str | None, changes: Sequence[Change | str] = ()) -> str:
    """The message for a plugin made for another version: `declared`, with the changes since, as rows or as text."""
    if isinstance(declared, int) and declared > VERSION:
        way = "install a newer dgpo"
    else:
        way = f"install a newer version of the plugin, or a dgpo from before version {VERSION} of the contract"
    lines = [f"made for version {declared} of dgpo's plugin contract, and this dgpo has version {VERSION}: {way}"]
    lines += [change if isinstance(change, str) else f"{change.was} became {change.now}" for change in changes]
    return "\n  ".join([*lines, f"how to change a plugin: {GUIDE}"])


def _holds(change: Change, contract: type) -> bool:
    """Whether the contract has this change: a row must not report a name or parameter that still exists."""
    method = getattr(contract, change.method, None)
    if method is None or change.parameter is None:
        return method is None
    return callable(method) and change.parameter not in inspect.signature(method).parameters


def _is_older(change: Change, implementation: type, contract: type) -> bool:
    place = _overridden_at(implementation, change.method, contract)
    if place is None:
        return False
    if change.parameter is None:
        replaced = _overridden_at(implementation, change.instead, contract)
        signs = all(_overridden_at(implementation, name, contract) is not None for name in change.sign)
        return signs and (replaced is None or place < replaced)
    found = _parameters(implementation, change.method)
    if found is None or (change.instead in found and not _says_texts(found[change.instead])):
        return False
    if change.parameter in found:
        return not _says_prompts(found[change.parameter])
    return change.parameter == "texts" and any(map(_says_texts, found.values()))


def _overridden_at(implementation: type, name: str, contract: type) -> int | None:
    """Where in the method resolution order a class below the contract first defines a name; None if none does. A
    plugin's class may derive from one of another plugin that has the new name already."""
    classes = [one for one in implementation.__mro__ if one not in contract.__mro__]
    return next((i for i, one in enumerate(classes) if name in vars(one)), None)


def _parameters(implementation: type, name: str) -> Mapping[str, inspect.Parameter] | None:
    """Parameters of a method by name, those of the wrapped function where a decorator takes any arguments; None if
    unknown."""
    method = getattr(implementation, name)
    try:
        outer = inspect.signature(method, follow_wrapped=False).parameters
        anything = any(p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD for p in outer.values())
        found = inspect.signature(method).parameters if anything else outer
    except (TypeError, ValueError):
        return None
    return found


def _says_texts(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is annotated as texts and not as prompts."""
    return bool(re.search(r"\bstr\b", _written(parameter))) and not _says_prompts(parameter)


def _says_prompts(parameter: inspect.Parameter) -> bool:
    return "Prompt" in _written(parameter)


def _written(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return "" if annotation is parameter.empty else inspect.formatannotation(annotation)
