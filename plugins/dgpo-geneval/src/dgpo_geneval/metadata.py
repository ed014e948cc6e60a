"""The metadata of GenEval prompts, and its validation.

The format is that of djghosh13/geneval's `evaluation_metadata.jsonl`:
`{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["left of",
0]}], "exclude": [...], "prompt": "a photo of a dog left of a bench"}`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval.detector import Thresholds
from dgpo_schemas.base import Int, StrictModel
from dgpo_schemas.problems import show

__all__ = [
    "COLORS",
    "RELATIONS",
    "TASKS",
    "Exclude",
    "Include",
    "Metadata",
    "Relation",
    "Task",
    "check_against",
    "parse",
]

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Relation = Literal["left of", "right of", "above", "below"]

TASKS: tuple[Task, ...] = get_args(Task)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The possible colors in GenEval prompts, in the benchmark's order."""


_LONGEST = 200
"""Maximum number of characters of a prompt in a message."""


def _short(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}... ({len(text)} characters)"


# The checks below run for every prompt at the start of every run: `dict` is named beside `Mapping` because its check is
# ten times as fast.


def _is_absent(value: Any) -> bool:
    """Return whether a value is null, NaN or empty, as tables fill columns that a prompt does not have."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _whole(value: Any) -> Any:
    """Convert integral floats to int: tables write integers as 1.0 in columns with missing values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _from_cell(value: Any) -> Any:
    """Convert a table cell: JSON lists and objects of .csv files, and objects of lists, to which the library `datasets`
    converts lists of clauses. Returns other values unchanged. Raises ValueError for invalid JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return _from_cell(json.loads(value))
        except (ValueError, RecursionError):
            python = " (Python notation with single quotes is not JSON)" if "'" in value else ""
            raise ValueError(f"is not valid JSON{python}: {show(value)}") from None
    if isinstance(value, (dict, Mapping)) and value and all(isinstance(column, list) for column in value.values()):
        columns = list(value.values())
        if "class" in value and len({len(column) for column in columns}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return value


def _unknown(what: str, value: object, allowed: Iterable[str], cutoff: float = 0.5) -> ValueError:
    """Return an error such as `unknown color 'gren'; did you mean 'green'? (allowed: ...)`."""
    choices = list(allowed)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=cutoff)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    listed = ", ".join(choices[:12]) + (f" and {len(choices) - 12} more" if len(choices) > 12 else "")
    return ValueError(f"unknown {what} {value!r}{hint} (allowed: {listed})")


class _Clause(StrictModel):
    """An object class and a number of objects."""

    label: str = Field(alias="class", min_length=1, description="Class of the object, one of the detector's labels.")
    count: Int = Field(ge=1, strict=True, description="Number of objects.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """Drop empty unknown keys: in tables, every clause has the columns of all clauses, including other kinds."""
        value = _from_cell(value)
        if not isinstance(value, (dict, Mapping)):
            return value
        if not any(_is_absent(v) and v != "" for v in value.values()):
            return dict(value)
        names = {field.alias or name for name, field in cls.model_fields.items()}
        filled = {k: None if _is_absent(v) and v != "" else v for k, v in value.items()}
        return {k: v for k, v in filled.items() if v is not None or k in names}

    @field_validator("count", mode="before")
    @classmethod
    def _whole_count(cls, value: Any) -> Any:
        return _whole(value)


class Include(_Clause):
    """Required objects: at least `count` (exactly, in `geneval-flowgrpo`), optionally with a color, and with a position
    relative to the objects of an earlier clause. In `geneval`, clauses of one class require distinct objects."""

    color: str | None = Field(default=None, description="Required color of all objects.")
    position: tuple[Relation, int] | None = Field(
        default=None, description="Relation, and the index of the earlier `include` clause that it refers to."
    )

    @field_validator("color", mode="before")
    @classmethod
    def _no_color(cls, value: Any) -> Any:
        return None if _is_absent(value) else value

    @field_validator("color")
    @classmethod
    def _known_color(cls, value: str | None) -> str | None:
        if value is not None and value not in COLORS:
            raise _unknown("color", value, COLORS)
        return value

    @field_validator("position", mode="before")
    @classmethod
    def _known_relation(cls, value: Any) -> Any:
        value = _from_cell(value)
        if _is_absent(value):
            return None
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"must be [relation, index of an earlier include clause], got {value!r}")
        relation, index = value[0], _whole(value[1])
        if relation not in RELATIONS:
            raise _unknown("relation", relation, RELATIONS)
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"must be the index of an earlier include clause, got {index!r}")
        return relation, index


class Exclude(_Clause):
    """Excluded objects: there must be fewer than `count`."""


class Metadata(StrictModel):
    """The requirements of one prompt. Keys of other rewards are ignored."""

    model_config = ConfigDict(extra="ignore")

    tag: str = Field(description="Task of the benchmark; `counting` has its own score threshold.")
    include: tuple[Include, ...] = Field(min_length=1, description="Required objects.")
    exclude: tuple[Exclude, ...] = Field(default=(), description="Upper bounds on numbers of objects.")

    @model_validator(mode="before")
    @classmethod
    def _no_misspelled_key(cls, value: Any) -> Any:
        """Reject misspelled keys such as `exlude`, which would silently change the score. Unknown keys are allowed for
        other tools, so a key is rejected only if it resembles an absent key and its value has a matching type
        (`excluded: false` is accepted)."""
        if isinstance(value, (dict, Mapping)):
            absent = [name for name in cls.model_fields if _is_absent(value.get(name))]
            for key, given in value.items():
                if not absent or key in cls.model_fields:
                    continue
                near = difflib.get_close_matches(str(key).casefold().strip(), absent, n=1, cutoff=0.8)
                clauses = isinstance(given, list | tuple | Mapping) or str(given).lstrip()[:1] in ("[", "{")
                if near and (clauses or near[0] != "exclude"):
                    raise ValueError(f"unknown key {key!r}; did you mean {near[0]!r}?")
        return value

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _clauses(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert cells of tables, in which every prompt has the same columns."""
        return () if info.field_name == "exclude" and _is_absent(value) else _from_cell(value)

    @field_validator("tag")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in TASKS:
            raise _unknown("task", value, TASKS)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Metadata:
        for index, clause in enumerate(self.include):
            if clause.position is not None and not 0 <= clause.position[1] < index:
                earlier = f"0 to {index - 1}" if index > 1 else "0" if index else "none for the first clause"
                raise ValueError(
                    f"include[{index}].position refers to clause {clause.position[1]}; must be the index of an "
                    f"earlier include clause ({earlier})"
                )
        for index, bound in enumerate(self.exclude):
            required = max((c.count for c in self.include if c.label == bound.label), default=0)
            if bound.count <= required:
                raise ValueError(
                    f"exclude[{index}] allows fewer than {bound.count} {bound.label!r}, but include requires "
                    f"{required}; its count must be at least {required + 1}"
                )
        return self


def _where(location: tuple[int | str, ...]) -> str:
    """Format ("include", 1, "class") as `include[1].class`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _words(error: Any) -> str:
    """Return the message for one of pydantic's errors, in terms of JSON."""
    kind, value = error["type"], error["input"]
    if kind in ("int_type", "int_from_float", "finite_number"):
        return f"must be an integer, got {show(value)}"
    if kind == "string_type":
        return f"must be a string, got {show(value)}"
    if kind == "string_unicode":
        return f"contains half of a character: {value!a}"
    if kind == "greater_than_equal":
        return f"must be at least {error['ctx']['ge']}, got {show(value)}"
    if kind == "tuple_type":
        return f"must be a list, got {show(value)}"
    if kind in ("model_type", "model_attributes_type"):
        return f'must be an object such as {{"class": "dog", "count": 1}}, got {show(value)}'
    if kind == "missing":
        return "is missing"
    if kind == "too_short":
        return "must have at least 1 clause"
    if kind == "extra_forbidden":
        model = Exclude if error["loc"][0] == "exclude" else Include
        return str(_unknown("key", error["loc"][-1], [f.alias or name for name, f in model.model_fields.items()], 0.8))
    return str(error["msg"]).removeprefix("Value error, ")


def parse(prompt: Prompt) -> Metadata:
    """Validate the metadata of a prompt. Raises UserError with the prompt, the key and the allowed values."""
    try:
        return Metadata.model_validate(dict(prompt.metadata))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = _where(first["loc"])
        message = _words(first)
        if not prompt.metadata:
            message += " (no metadata: GenEval requires `tag` and `include`, in a .jsonl file or as `metadata`)"
        raise UserError(
            f"prompt {_short(prompt.text)}: GenEval metadata{f', key {key!r}' if key else ''}: {message}"
        ) from error


def check_against(
    prompt: Prompt, labels: tuple[str, ...], thresholds: Thresholds, colors: tuple[str, ...] = ()
) -> Metadata:
    """Return a prompt's metadata; raise UserError if it is invalid or requires what a detector with these labels cannot
    detect.

    colors: the detector's colors; if empty, a classifier names all of `COLORS`.
    """
    metadata = parse(prompt)
    named: list[tuple[str, Include | Exclude]] = [(f"include[{i}]", c) for i, c in enumerate(metadata.include)]
    named += [(f"exclude[{i}]", c) for i, c in enumerate(metadata.exclude)]
    for key, clause in named:
        if clause.label not in labels:
            reason = _unknown("class", clause.label, labels)
            raise UserError(f"prompt {_short(prompt.text)}: GenEval metadata, key '{key}.class': {reason}")
        if clause.count > thresholds.per_class:
            raise UserError(
                f"prompt {_short(prompt.text)}: GenEval metadata, key '{key}.count': {clause.count} is more than the "
                f"{thresholds.per_class} detections per class that the detector keeps"
            )
        color = clause.color if isinstance(clause, Include) else None
        if colors and color is not None and color not in colors:
            reason = _unknown("color", color, colors)
            raise UserError(
                f"prompt {_short(prompt.text)}: GenEval metadata, key '{key}.color': {reason} for the detector"
            )
    return metadata
