"""Old names in the data of a file: where they are, and what the data are with the new names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo_core.config.migration.table import RUN, SERVICE, Table
from dgpo_schemas.problems import KeyPath, dotted

__all__ = ["Change", "Renamed", "rename", "rename_setting"]

AVERAGES = ("objective", "ema")
"""The section of dgpo 0.1 whose two subsections are sections of their own in dgpo 0.2."""


@dataclass(frozen=True)
class Change:
    """A key or a value that has another name now.

    where: the path in the old file; key: the new key, or keys with dots in an ablation's settings; value: the new
    scalar; lifted: whether the key moves up into the section around its own.
    """

    where: KeyPath
    message: str
    key: str | None = None
    value: str | None = None
    lifted: bool = False


@dataclass
class Renamed:
    """The data with new names, every change, and what cannot be renamed: paths with the reason."""

    data: Any = None
    changes: list[Change] = field(default_factory=list)
    conflicts: list[tuple[KeyPath, str]] = field(default_factory=list)


def rename(data: Mapping[str, Any], kind: str) -> Renamed:
    """The data of a file of a kind: "run" (a preset too), "ablation", or "service"."""
    walk = _Walk(SERVICE if kind == "service" else RUN)
    found = walk.found
    found.data = walk.ablation(data) if kind == "ablation" else walk.mapping(data, (), (), None)
    return found


def rename_setting(key: str, value: Any, kind: str, component: str | None) -> Renamed:
    """A setting of the command line. component: the `use` of the innermost block around the key; None if unknown."""
    walk = _Walk(SERVICE if kind == "service" else RUN)
    walk.found.data = walk.mapping({key: value}, (), (), component, dots=True)
    return walk.found


class _Walk:
    """Through data, along two paths: `where` with the names of the file, and `path` with the new ones."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.found = Renamed()

    def mapping(
        self, data: Mapping[str, Any], path: KeyPath, where: KeyPath, component: str | None, *, dots: bool = False
    ) -> dict[str, Any]:
        """A section. dots: its keys are dotted paths."""
        component = data["use"] if isinstance(data.get("use"), str) else component
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            here = (*where, key)
            new = self._new_path(path, key, dots=dots)
            if _is_lifted(new, value):
                if dots and len(value) < 2:
                    self._conflict(here, "sets both averages; write objective.ema_fast and objective.ema instead")
                for inner, content in value.items():
                    target = self.table.key((*new, inner))
                    if target == (*new, inner):
                        self._conflict((*here, inner), "stands beside fast or slow of dgpo 0.1; delete one of the two")
                        continue
                    self._put(renamed, _relative(target, path), content, (*here, inner))
                    self._change((*here, inner), target, _relative(target, path), lifted=True)
                continue
            scalar = self.table.value(new, value, component)
            name = _relative(new, path)
            self._put(renamed, name, self._value(value, new, here, component) if scalar is None else scalar, here)
            if name != key or scalar is not None:
                self._change(here, new, None if name == key else name, was=value, value=scalar)
        return renamed

    def ablation(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """An ablation file: `set`, and each axis."""
        renamed = dict(data)
        if isinstance(data.get("set"), dict):
            renamed["set"] = self.mapping(data["set"], (), ("set",), None, dots=True)
        if isinstance(data.get("axes"), list):
            renamed["axes"] = [
                self._axis(axis, ("axes", i)) if isinstance(axis, dict) else axis for i, axis in enumerate(data["axes"])
            ]
        return renamed

    def _axis(self, axis: Mapping[str, Any], where: KeyPath) -> dict[str, Any]:
        renamed, key, values = dict(axis), axis.get("key"), axis.get("values")
        if isinstance(key, str):
            path = self._new_path((), key, dots=True)
            renamed["key"] = _relative(path, ())
            if renamed["key"] != key:
                self.found.changes.append(
                    Change((*where, "key"), f"{key} is now {renamed['key']}", value=renamed["key"])
                )
            if isinstance(values, list):
                renamed["values"] = [
                    self._axis_value(value, path, (*where, "values", i)) for i, value in enumerate(values)
                ]
        if isinstance(axis.get("variants"), dict):
            renamed["variants"] = {
                name: self.mapping(settings, (), (*where, "variants", name), None, dots=True)
                if isinstance(settings, dict)
                else settings
                for name, settings in axis["variants"].items()
            }
        return renamed

    def _axis_value(self, value: Any, path: KeyPath, where: KeyPath) -> Any:
        if _is_lifted(path, value):
            self._conflict(where, "sets both averages; write `variants` with objective.ema_fast and objective.ema")
            return value
        scalar = self.table.value(path, value, None)
        if scalar is not None:
            self.found.changes.append(Change(where, f"{value} is now {scalar}", value=scalar))
            return scalar
        return self._value(value, path, where, None)

    def _value(self, value: Any, path: KeyPath, where: KeyPath, component: str | None) -> Any:
        if isinstance(value, dict):
            return self.mapping(value, path, where, component)
        if isinstance(value, list):
            return [self._value(one, (*path, i), (*where, i), None) for i, one in enumerate(value)]
        return value

    def _new_path(self, path: KeyPath, key: str, *, dots: bool) -> KeyPath:
        for part in key.split(".") if dots else [key]:
            path = self.table.key((*path, part))
        return path

    def _put(self, renamed: dict[str, Any], key: str, value: Any, where: KeyPath) -> None:
        if key in renamed:
            self._conflict(where, f"the file has this key twice, with its old and its new name ({key}); delete one")
        renamed[key] = value

    def _conflict(self, where: KeyPath, message: str) -> None:
        self.found.conflicts.append((where, message))

    def _change(
        self,
        where: KeyPath,
        path: KeyPath,
        key: str | None,
        *,
        was: Any = None,
        value: str | None = None,
        lifted: bool = False,
    ) -> None:
        parts = [f"is now {dotted(path)}"] if key is not None else []
        parts += [f"the value {was} is now {value}"] if value is not None else []
        self.found.changes.append(Change(where, ", and ".join(parts), key, value, lifted))


def _is_lifted(path: KeyPath, value: Any) -> bool:
    return path == AVERAGES and isinstance(value, dict) and bool({"fast", "slow"} & value.keys())


def _relative(path: KeyPath, section: KeyPath) -> str:
    """A new path as a key of the section that it is written in."""
    return ".".join(map(str, path[len(section) :]))
