"""All keys that a file may have, with what they mean: those of its schema, and the options of its components."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from dgpo_core.config.components import PLACES, SERVED, blocks_at
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.base import UseBlock
from dgpo_schemas.changes import ITEM, Effect, declared, effect_of, generic
from dgpo_schemas.keys import Key, keys_of
from dgpo_schemas.problems import KeyPath, dotted
from dgpo_schemas.run import RunConfig
from dgpo_schemas.serve import ServeConfig

__all__ = ["FILES", "FileSchema", "Keys", "KnownKey", "keys_in", "keys_of_any", "keys_of_file"]

PROMPTS = "prompts"
"""Kind whose short form, a string, is a file and not a component's name."""


@dataclass(frozen=True, slots=True)
class FileSchema:
    """What a kind of file may contain. places: keys that select components, with their kinds."""

    noun: str
    model: type[BaseModel]
    places: Mapping[KeyPath, str]


FILES: Mapping[str, FileSchema] = {
    "run": FileSchema("a run file", RunConfig, PLACES),
    "service": FileSchema("a reward file", ServeConfig, SERVED),
    "ablation": FileSchema("an ablation file", AblationConfig, {}),
}
"""By the kinds of files of `reading`."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that a file may have.

    key: its name in the file, type, default and meaning. effect: what a resume may do with it, None if the file is not
    a run file. owners: the components that have this option, such as "reward geneval"; empty for keys of the file.
    """

    key: Key
    effect: Effect | None
    owners: tuple[str, ...] = ()


class Keys:
    """The keys that a file may have, in the order of its schema. Several components may have an option of one name."""

    def __init__(self, found: Iterator[KnownKey]) -> None:
        self.by_name: dict[str, list[KnownKey]] = {}
        for known in found:
            self._add(known)

    def _add(self, known: KnownKey) -> None:
        others = self.by_name.setdefault(known.key.name, [])
        for i, other in enumerate(others):
            if other.key == known.key and other.effect == known.effect:
                others[i] = replace(other, owners=tuple(dict.fromkeys((*other.owners, *known.owners))))
                return
        others.append(known)

    def find(self, name: str) -> list[KnownKey]:
        """Return a key; several if components differ in it; of a list item with keys, the list's.

        Indices of list items may be numbers or ITEM.
        """
        found = self.by_name.get(name) or self.by_name.get(generic(name))
        if not found and generic(name).endswith(f".{ITEM}") and self.below(name):
            return self.find(name.rpartition(".")[0])
        return found or []

    def below(self, name: str) -> dict[str, list[KnownKey]]:
        """Return the keys directly below a section or component, by their last name; those at the top for ""."""
        found: dict[str, list[KnownKey]] = {}
        for known, ones in self.by_name.items():
            parent, _, last = known.rpartition(".")
            if parent in (name, generic(name)):
                found.setdefault(last, ones)
        return found

    def nearest(self, name: str, most: int = 3) -> list[str]:
        """Return the most similar keys, best first: those of a similar name, and of the same last name elsewhere."""
        wanted = generic(name)
        last = wanted.rpartition(".")[2]
        others = [known for known in self.by_name if known.rpartition(".")[2] == last]
        close = difflib.get_close_matches(wanted, self.by_name, n=most, cutoff=0.7)
        if not others and not close:
            lasts = difflib.get_close_matches(last, {known.rpartition(".")[2] for known in self.by_name}, n=1)
            others = [known for known in self.by_name if known.rpartition(".")[2] in lasts]
        ranked = sorted(dict.fromkeys([*close, *others]), key=lambda known: -_similarity(wanted, known))
        return [known.replace(f".{ITEM}", ".0") for known in ranked[:most]]


def keys_of_file(kind: str) -> Keys:
    """Return the keys of a kind of file (of `FILES`) without options of components."""
    return Keys(_of_schema(kind))


def keys_in(kind: str, data: Mapping[str, Any], registry: Registry) -> Keys:
    """Return the keys of a kind of file with this content: options are those of the components in it.

    Options of components that are not installed are left out.
    """
    return Keys(_keys_in(kind, data, registry))


def keys_of_any(kind: str, registry: Registry) -> Keys:
    """Return the keys of a kind of file with any content: options are those of all installed components."""
    return Keys(_keys_of_any(kind, registry))


def _keys_in(kind: str, data: Mapping[str, Any], registry: Registry) -> Iterator[KnownKey]:
    yield from _of_schema(kind)
    for place, component in FILES[kind].places.items():
        for where, block in blocks_at(data, place):
            yield from _options(kind, component, where, block, registry)


def _keys_of_any(kind: str, registry: Registry) -> Iterator[KnownKey]:
    yield from _of_schema(kind)
    names = {known.key.name for known in _of_schema(kind)}
    for place, component in FILES[kind].places.items():
        for where in (dotted(place), dotted((*place, ITEM))):
            if f"{where}.options" in names:
                for name in registry.components(component):
                    yield from _options(kind, component, (where,), {"use": name}, registry)


def _of_schema(kind: str) -> Iterator[KnownKey]:
    """Yield the keys of a file's own schema. Those of a bare `use` block, which the schema shares, are added."""
    model, places = FILES[kind].model, FILES[kind].places
    blocks = {dotted(place) for place in places}
    keys = keys_of(model)
    names = {key.name for key in keys}
    for key in keys:
        yield KnownKey(key, effect_of(key.name) if kind == "run" else None)
        if key.name in blocks and not any(name.startswith(f"{key.name}.") for name in names):
            for inner in keys_of(UseBlock, f"{key.name}."):
                yield KnownKey(inner, effect_of(inner.name) if kind == "run" else None)


def _options(kind: str, component: str, where: KeyPath, block: Any, registry: Registry) -> Iterator[KnownKey]:
    """Yield the options of a component, and of the components that its options select in turn."""
    short = isinstance(block, str)
    name = (None if component == PROMPTS else block) if short else block.get("use") if isinstance(block, dict) else None
    options = block.get("options") if isinstance(block, dict) else None
    if not isinstance(name, str):
        return
    place = f"{dotted(where)}.options"
    try:
        registered = registry.find(component, name)
        model = registry.options_model(registered)
        keys = keys_of(model, f"{place}.")
    except Exception:  # not installed here, or a plugin with options that have no schema
        return
    resumed = {f"{place}.{key}": effect for key, effect in declared(model).items()}
    owner = f"{registered.noun} {name}"
    for key in keys:
        yield KnownKey(key, effect_of(key.name, resumed) if kind == "run" else None, (owner,))
    for inner in registry.kinds:
        if isinstance(options, dict) and inner in model.model_fields and options.get(inner) is not None:
            yield from _options(kind, inner, (*where, "options", inner), options[inner], registry)


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
