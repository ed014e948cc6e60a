"""What a GenEval prompt asks for: its metadata, validated.

The format is that of djghosh13/geneval's `evaluation_metadata.jsonl`:
`{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["left of",
0]}], "exclude": [...], "prompt": "a photo of a dog left of a bench"}`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

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
"""The colours a GenEval prompt may name, in the benchmark's order."""


def _unknown(what: str, value: object, allowed: Iterable[str], cutoff: float = 0.5) -> ValueError:
    """`unknown colour 'gren'; did you mean 'green'? (allowed: ...)`."""
    choices = list(allowed)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=cutoff)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    listed = ", ".join(choices[:12]) + (f" and {len(choices) - 12} more" if len(choices) > 12 else "")
    return ValueError(f"unknown {what} {value!r}{hint} (allowed: {listed})")


class _Clause(StrictModel):
    """A class of objects and a number of them."""

    label: str = Field(alias="class", min_length=1, description="Class of the object, one of the detector's labels.")
    count: Int = Field(ge=1, strict=True, description="How many of it.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """Tables give every clause the columns of all, also of those that another kind of clause has."""
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {k: v for k, v in value.items() if v is not None or k in names} if isinstance(value, Mapping) else value


class Include(_Clause):
    """Objects that must be there: at least `count` (exactly, in `geneval-flowgrpo`), perhaps of a colour and at a
    place relative to the objects of an earlier clause. In `geneval` clauses of one class want different objects."""

    color: str | None = Field(default=None, description="Colour that all of them must have.")
    position: tuple[Relation, int] | None = Field(
        default=None, description="Relation, and the index of the earlier `include` clause it refers to."
    )

    @field_validator("color")
    @classmethod
    def _known_color(cls, value: str | None) -> str | None:
        if value is not None and value not in COLORS:
            raise _unknown("colour", value, COLORS)
        return value

    @field_validator("position", mode="before")
    @classmethod
    def _known_relation(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"{value!r} is not [relation, index of an earlier include clause]")
        relation, index = value
        if relation not in RELATIONS:
            raise _unknown("relation", relation, RELATIONS)
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"{index!r} is not the index of an earlier include clause")
        return relation, index


class Exclude(_Clause):
    """Objects of which there must be fewer than `count`."""


class Metadata(StrictModel):
    """What one prompt asks for. Keys of other rewards may stand beside GenEval's own and are not looked at."""

    model_config = ConfigDict(extra="ignore")

    tag: str = Field(description="Task of the benchmark; `counting` has a threshold of its own.")
    include: tuple[Include, ...] = Field(min_length=1, description="Objects that must be there.")
    exclude: tuple[Exclude, ...] = Field(default=(), description="Objects that must not be there in such numbers.")

    @model_validator(mode="before")
    @classmethod
    def _no_misspelt_key(cls, value: Any) -> Any:
        """Other rewards' and tools' keys are welcome, but `exlude` is a mistake that would silently change the score: a
        key like one of ours is refused where ours is not there."""
        if isinstance(value, Mapping):
            absent = [name for name in cls.model_fields if value.get(name) is None]
            for key in value:
                near = difflib.get_close_matches(str(key).casefold(), absent, n=1, cutoff=0.8)
                if near and key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}; did you mean {near[0]!r}?")
        return value

    @field_validator("exclude", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any) -> Any:
        """Null, as tables write it that give every prompt the same columns."""
        return () if value is None else value

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
                earlier = f"0 to {index - 1}" if index > 1 else "0" if index else "there is none before the first"
                raise ValueError(
                    f"include[{index}].position refers to clause {clause.position[1]}; it must be the index of an "
                    f"earlier include clause ({earlier})"
                )
        for index, bound in enumerate(self.exclude):
            asked = max((c.count for c in self.include if c.label == bound.label), default=0)
            if bound.count <= asked:
                raise ValueError(
                    f"exclude[{index}] wants fewer than {bound.count} {bound.label!r}, but include asks for {asked}; "
                    f"its count must be at least {asked + 1}"
                )
        return self


def _where(location: tuple[int | str, ...]) -> str:
    """("include", 1, "class") as `include[1].class`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _words(error: Any) -> str:
    """What is wrong with a value, from one of pydantic's errors, where its own words do not speak of JSON."""
    kind, value = error["type"], error["input"]
    if kind == "tuple_type":
        return f"must be a list, not {show(value)}"
    if kind in ("model_type", "model_attributes_type"):
        return f'must be an object such as {{"class": "dog", "count": 1}}, not {show(value)}'
    if kind == "too_short":
        return "must have at least 1 clause"
    if kind == "extra_forbidden":
        model = Exclude if error["loc"][0] == "exclude" else Include
        return str(_unknown("key", error["loc"][-1], [f.alias or name for name, f in model.model_fields.items()], 0.8))
    return str(error["msg"]).removeprefix("Value error, ")


def parse(prompt: Prompt) -> Metadata:
    """The validated metadata of a prompt. Raises UserError naming the prompt, the key and what is allowed."""
    try:
        return Metadata.model_validate(dict(prompt.metadata))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = _where(first["loc"])
        message = _words(first)
        if not prompt.metadata:
            message += " (it has no metadata: GenEval needs `tag` and `include`, in a .jsonl file or as `metadata`)"
        raise UserError(
            f"prompt {prompt.text!r}: GenEval metadata{f', key {key!r}' if key else ''}: {message}"
        ) from error


def check_against(
    prompt: Prompt, labels: tuple[str, ...], thresholds: Thresholds, colors: tuple[str, ...] = ()
) -> None:
    """Raise UserError if a prompt's metadata is invalid or asks for what a detector with these labels cannot see.

    `colors`: those that the detector gives, if it gives any; with none, a classifier names all of `COLORS`.
    """
    metadata = parse(prompt)
    named: list[tuple[str, Include | Exclude]] = [(f"include[{i}]", c) for i, c in enumerate(metadata.include)]
    named += [(f"exclude[{i}]", c) for i, c in enumerate(metadata.exclude)]
    for key, clause in named:
        if clause.label not in labels:
            reason = _unknown("class", clause.label, labels)
            raise UserError(f"prompt {prompt.text!r}: GenEval metadata, key '{key}.class': {reason}")
        if clause.count > thresholds.per_class:
            raise UserError(
                f"prompt {prompt.text!r}: GenEval metadata, key '{key}.count': {clause.count} is more than the "
                f"{thresholds.per_class} detections of a class that the detector keeps"
            )
        color = clause.color if isinstance(clause, Include) else None
        if colors and color is not None and color not in colors:
            reason = _unknown("colour", color, colors)
            raise UserError(f"prompt {prompt.text!r}: GenEval metadata, key '{key}.color': {reason} for the detector")
