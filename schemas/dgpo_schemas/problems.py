"""Validation errors as readable messages: one line per problem, with its position and the nearest valid choice."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dgpo_schemas.annotations import models_of, plain

__all__ = [
    "INDEX",
    "ConfigError",
    "KeyPath",
    "Problem",
    "dotted",
    "explain",
    "field_at",
    "is_number",
    "nearest",
    "show",
    "split_key",
]

KeyPath = tuple[str | int, ...]
INDEX = re.compile("[0-9]{1,9}")
"""An index of a list in a dotted key. Python refuses to read numbers of thousands of digits."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. `where` is a position such as "run.yaml:12" or "--set rollout.steps=0"; `key` is dotted, or empty."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        # "--set rollout.steps=0" names its key already, and so does "--option scale=x" for options.scale.
        known = (f"--set {self.key}=", f"override {self.key}=", f"--option {self.key.removeprefix('options.')}=")
        named = not self.key or self.where.startswith(known)
        return f"{self.where}: {self.message}" if named else f"{self.where}: {self.key}: {self.message}"


class ConfigError(ValueError):
    """All errors of a file, one line per problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Iterable[str | int]) -> str:
    """Format a key path as dotted text: rewards.0.weight."""
    return ".".join(
        component if isinstance(component, str) and component.isprintable() else str(ascii(component))
        for component in path
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the most similar known name, or "" if none is similar."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close and len(name) > 2:
        close = [other for other in known if name in other][:1]
    return f"; did you mean {close[0]}?" if close else ""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def show(value: Any) -> str:
    """Format a value as in a YAML file, truncated to about 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format integers with thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def explain(model: type[BaseModel], data: Any, error: ValidationError) -> list[tuple[KeyPath, str]]:
    """Return (path, message) of every error that pydantic found in `data`."""
    found: list[_Mistake] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "run_rules":
            found += [_Mistake(split_key(key), message) for key, message in detail["ctx"]["violations"]]
        else:
            found.append(_mistake(model, data, detail))
    return _merge_branches(found)


@dataclass(frozen=True, slots=True)
class _Mistake:
    path: KeyPath
    message: str
    value: str = ""
    """The value found, if the message should show it."""
    union: KeyPath | None = None
    """Path of the innermost union around it: pydantic reports an error for every branch that does not match."""
    counted: bool = False
    """Whether it is the number of a list's entries: branches that are no lists are not meant."""


def split_key(key: str) -> KeyPath:
    """Return the path of a dotted key; whole numbers are indices of lists."""
    return tuple(int(component) if INDEX.fullmatch(component) else component for component in key.split("."))


def _mistake(model: type[BaseModel], data: Any, detail: Any) -> _Mistake:
    path: list[str | int] = []
    union: KeyPath | None = None
    here, location = data, detail["loc"]
    for i, component in enumerate(location):
        if (isinstance(here, dict) and component in here) or (isinstance(here, list) and component in range(len(here))):
            here = here[component]
            path.append(component)
        elif detail["type"] == "missing" and i == len(location) - 1 and isinstance(here, dict):
            path.append(component)
        elif any(component in found.model_fields for found in _models(model, tuple(path))):
            break  # inside a short form: the error belongs to the string
        elif isinstance(component, str):
            union = tuple(path)  # the name of a union's branch, not a key
    message, value = _words(model, tuple(path), detail, here)
    counted = detail["type"] in ("too_short", "too_long") and isinstance(here, list)
    return _Mistake(tuple(path), message, value, union, counted)


def _merge_branches(found: list[_Mistake]) -> list[tuple[KeyPath, str]]:
    """Merge errors of one union into one message: that of the best matching branch, or all joined with "or"."""
    merged: dict[tuple[Any, ...], list[_Mistake]] = {}
    for i, mistake in enumerate(found):
        merged.setdefault(("value", i) if mistake.union is None else ("union", mistake.union), []).append(mistake)
    out: list[tuple[KeyPath, str]] = []
    for group in merged.values():
        deepest = max(len(mistake.path) for mistake in group)
        best = [mistake for mistake in group if len(mistake.path) == deepest]
        paths = dict.fromkeys(mistake.path for mistake in best)
        for path in paths:
            here = [mistake for mistake in best if mistake.path == path]
            here = [mistake for mistake in here if mistake.counted] or here
            words = list(dict.fromkeys(mistake.message for mistake in here))
            joined = " or ".join([words[0], *(word.removeprefix("must be ") for word in words[1:])])
            shown = f", not {here[0].value}" if here[0].value else ""
            out.append((path, joined + (shown if shown not in joined else "")))
    return out


_LIMITS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
}
_KINDS = {
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing_size": "must be an integer of at most 64 bits",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid Unicode characters",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "path_type": "must be a path",
    "dict_type": "must be a section of keys and values",
    "none_required": "must be null",
}


def _words(model: type[BaseModel], path: KeyPath, detail: Any, here: Any) -> tuple[str, str]:
    """Return (message, value to show) for a pydantic error."""
    kind, context, value = detail["type"], detail.get("ctx") or {}, show(detail["input"])
    if kind == "missing":
        return _with_description("is missing", field_at(model, path)), ""
    if kind == "extra_forbidden":
        return _unknown_key(model, path), ""
    if kind in _KINDS:
        quotes = kind == "string_type" and isinstance(detail["input"], bool | int | float)
        return _KINDS[kind], value + (" (put it in quotes)" if quotes else "")
    if kind in _LIMITS and detail["input"] != detail["input"]:  # NaN fails every bound
        return _KINDS["finite_number"], value
    if kind in _LIMITS:
        return _LIMITS[kind].format(**{name: _limit(limit) for name, limit in context.items()}), value
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        near = nearest(str(detail["input"]), allowed)
        return f"must be {_either(allowed)}, not {value}{near}", ""
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        keys = sorted({name for found in _models(model, path) for name in found.model_fields})
        return f"must be a section with keys such as {', '.join(keys[:4])}" if keys else _KINDS["dict_type"], value
    if kind == "too_short" and detail["input"] == "":
        return "must not be empty", ""
    if kind in ("too_short", "too_long"):
        side = "at least" if kind == "too_short" else "at most"
        count = context.get("min_length", context.get("max_length"))
        return f"must have {side} {count} {'entry' if count == 1 else 'entries'}", str(context["actual_length"])
    if kind == "string_too_short":
        count = context["min_length"]
        return "must not be empty" if count == 1 else f"must have at least {count} characters", ""
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters", str(len(detail["input"]))
    if kind == "string_pattern_mismatch":
        field = field_at(model, path)
        rule = field.description if field and field.description else f"it must match {context['pattern']}"
        return f"{value} is not allowed here: {rule}", ""
    if kind == "address":  # do not show the value, which may contain a password
        return detail["msg"], ""
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message + ("" if isinstance(here, dict | list) or value in message else f" (got {value})"), ""


def _limit(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _either(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"{', '.join(allowed[:-1])} or {allowed[-1]}"


def _with_description(message: str, field: FieldInfo | None) -> str:
    return f"{message} ({field.description.rstrip('.')})" if field and field.description else message


def _unknown_key(model: type[BaseModel], path: KeyPath) -> str:
    name = str(path[-1])
    allowed = sorted({known for found in _models(model, path[:-1]) for known in found.model_fields})
    if near := nearest(name, allowed):
        return f"unknown key{near}"
    elsewhere = [dotted(known) for known in _all_keys(model) if known[-1] == name]
    if elsewhere:
        return f"unknown key; did you mean {' or '.join(elsewhere[:2])}?"
    return f"unknown key; allowed: {', '.join(allowed) or 'none'}"


# -- walking through a model's annotations ------------------------------------------------------------------------


def _inside(annotation: Any, component: str | int) -> Iterator[Any]:
    """Yield the annotations of a key or list entry."""
    for kind in plain(annotation):
        arguments = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if component in kind.model_fields:
                yield kind.model_fields[component].annotation
        elif isinstance(component, int) and arguments and get_origin(kind) is not dict:
            yield arguments[0]
        elif get_origin(kind) is dict:
            yield arguments[1]


def _models(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """Return the models that are allowed at a path."""
    annotations: list[Any] = [model]
    for component in path:
        annotations = [inner for annotation in annotations for inner in _inside(annotation, component)]
    return [found for annotation in annotations for found in models_of(annotation)]


def field_at(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """Return the field of a model, or of a model in it, at a path of keys and list indices; None if it has none."""
    if not path or not isinstance(path[-1], str):
        return None
    fields = (found.model_fields.get(path[-1]) for found in _models(model, path[:-1]))
    return next((field for field in fields if field is not None), None)


def _all_keys(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        for inner in models_of(field.annotation):
            if len(prefix) < 8:  # models may be recursive
                yield from _all_keys(inner, (*prefix, name))
