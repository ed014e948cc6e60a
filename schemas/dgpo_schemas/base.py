"""What every schema shares: strict models, numbers that may be written as text, `use` blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = [
    "ANYTIME",
    "FROM_THERE_ON",
    "LONGEST_SIDE",
    "NAME",
    "AnyFloat",
    "AnyOf",
    "Float",
    "Int",
    "Options",
    "ShortForm",
    "StrictModel",
    "Use",
    "UseBlock",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of runs, and of rewards in logs."""
LONGEST_SIDE = 16384
"""Pixels of a side."""
RESUME = "x-resume"
"""Key of a field in a JSON Schema that says what a resumed run may do with it; fields without it stay as they were."""
ANYTIME: dict[str, JsonValue] = {RESUME: "may change at any time"}
"""`json_schema_extra` of a setting of the run file that a resumed run may change, and that computes the same up to
rounding: where it runs, what it keeps and says, how it fits into memory. Of a section: all that is in it."""
FROM_THERE_ON: dict[str, JsonValue] = {RESUME: "may change; the run is another one from there on"}
"""The same of a setting that changes what is computed or measured from the resumed iteration on, but not what the run
is: its model, data, groups, rewards and objective. See `changes`."""


def _number_not_bool(value: Any) -> Any:
    """Refuse booleans: pydantic would read `true` as 1, and a switch in a number's place is a mistake."""
    if isinstance(value, bool):
        raise ValueError(f"a number is expected, not the switch {str(value).lower()!r}")
    return value


def _machine_sized(value: int) -> int:
    """Refuse numbers that no library takes: they would end in a traceback somewhere below."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"must be {'at most' if value > 0 else 'at least'} {'' if value > 0 else '-'}2**63")
    return value


def _of_sane_size(value: float) -> float:
    """Refuse numbers that float32 arithmetic turns into 0 or infinity, themselves or squared."""
    if value == 0 or SMALLEST <= abs(value) <= LARGEST:
        return value
    near = SMALLEST if abs(value) < SMALLEST else LARGEST
    bound = f"at most {LARGEST:g}" if abs(value) > LARGEST else f"0 or at least {SMALLEST:g}"
    size = "" if value > 0 else " in size"
    raise ValueError(f"must be {bound}{size}; the nearest is {near if value > 0 else -near:g}")


SMALLEST = 1e-30
LARGEST = 1e15

# YAML 1.1 reads `3e-4` as text; pydantic's lax mode turns numeric text into the number that was meant.
AnyFloat = Annotated[float, BeforeValidator(_number_not_bool), Field(allow_inf_nan=False)]
"""A finite number that a program gave."""
Float = Annotated[AnyFloat, AfterValidator(_of_sane_size)]
"""A number that a person set."""
Int = Annotated[int, BeforeValidator(_number_not_bool), AfterValidator(_machine_sized)]


class StrictModel(BaseModel):
    """A frozen model that forbids unknown keys and checks its defaults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Options(StrictModel):
    """Base of every plugin's options model: fields with descriptions, unknown keys forbidden."""


class UseBlock(StrictModel):
    """A plugin part chosen by name, with its own options."""

    use: str = Field(min_length=1, description="Name of the component; `dgpo plugins list` shows them.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="The component's own options; `dgpo plugins show NAME` explains them."
    )


@dataclass(frozen=True, slots=True)
class ShortForm:
    """Accepts a text for a section that has it at `key`: `sampler: flow-euler` for `sampler: {use: flow-euler}`."""

    key: str
    description: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The section, or a text in its place."""
        return core_schema.no_info_before_validator_function(self._section, handler(source))

    def _section(self, value: Any) -> Any:
        return {self.key: value} if isinstance(value, str) else value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Either the section or a text."""
        return {"anyOf": [handler(schema), {"type": "string", "minLength": 1, "description": self.description}]}


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Says `anyOf` in JSON Schemas where pydantic says `oneOf` of a union that is told apart by a function."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """All of its branches beside each other."""
        found = handler(schema)
        return {"anyOf": [inner for branch in found["oneOf"] for inner in branch.get("anyOf", [branch])]}


Use = Annotated[UseBlock, ShortForm("use", "Name of the component.")]
"""A component: its name, or `use` with `options`. In a plugin's own options, call the field after the kind of component
(`detector: Use`), and its name and options are checked when the run file is read."""
