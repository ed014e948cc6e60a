"""Building blocks of all schemas: strict models, numbers, `use` blocks."""

from __future__ import annotations

from collections.abc import Iterable
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
"""Pattern of the names of runs, rewards and prompt sources."""
LONGEST_SIDE = 16384
"""Maximum height or width, in pixels."""
RESUME = "x-resume"
"""JSON Schema key of a field that states whether a resume may change it. Fields without the key must not change."""
ANYTIME: dict[str, JsonValue] = {RESUME: "may change at any time"}
"""`json_schema_extra` of a setting that a resume may change without affecting results beyond rounding: where the run
executes, what it keeps and logs, how it fits into memory. On a section, it applies to all keys of the section."""
FROM_THERE_ON: dict[str, JsonValue] = {RESUME: "may change; results differ from the resumed iteration on"}
"""`json_schema_extra` of a setting that a resume may change and that affects results from the resumed iteration on,
but not the identity of the run: its model, data, groups, rewards and objective. See `changes`."""


def _number_not_bool(value: Any) -> Any:
    """Reject booleans, which pydantic would read as 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not the boolean {str(value).lower()!r}")
    return value


def _machine_sized(value: int) -> int:
    """Reject integers beyond 64 bits, which torch and numpy cannot represent."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"must be {'at most' if value > 0 else 'at least'} {'' if value > 0 else '-'}2**63")
    return value


def _of_sane_size(value: float) -> float:
    """Reject numbers that underflow or overflow in float32 arithmetic, themselves or squared."""
    if value == 0 or SMALLEST <= abs(value) <= LARGEST:
        return value
    near = SMALLEST if abs(value) < SMALLEST else LARGEST
    bound = f"at most {LARGEST:g}" if abs(value) > LARGEST else f"0 or at least {SMALLEST:g}"
    size = "" if value > 0 else " in magnitude"
    raise ValueError(f"must be {bound}{size}; the nearest is {near if value > 0 else -near:g}")


SMALLEST = 1e-30
LARGEST = 1e15

# YAML 1.1 reads `3e-4` as a string; pydantic's lax mode converts numeric strings.
AnyFloat = Annotated[float, BeforeValidator(_number_not_bool), Field(allow_inf_nan=False)]
"""A finite number from a program, such as a score."""
Float = Annotated[AnyFloat, AfterValidator(_of_sane_size)]
"""A finite number from a user, such as an option."""
Int = Annotated[int, BeforeValidator(_number_not_bool), AfterValidator(_machine_sized)]


class StrictModel(BaseModel):
    """A frozen pydantic model that forbids unknown keys and validates its defaults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Options(StrictModel):
    """Base class of a plugin's options model. Give each field a description; unknown keys are forbidden."""

    def conflicts(self, run: Any, key: str) -> Iterable[tuple[str, str]]:
        """Return (key, message) of each combination with other settings of the run file that cannot work.

        run: the run file (`dgpo_schemas.run.RunConfig`); key: where these options are in it, such as
        `backbone.options`. Called whenever a run file is read, before the component is imported; the result must not
        depend on the machine. By default none.
        """
        return ()


class UseBlock(StrictModel):
    """A component chosen by name, with its options."""

    use: str = Field(min_length=1, description="Name of the component; `dgpo plugins list` lists all names.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the component; `dgpo plugins show NAME` describes them."
    )


@dataclass(frozen=True, slots=True)
class ShortForm:
    """Annotation that accepts a string in place of a section with `key` set to it: `sampler: flow-euler` is short for
    `sampler: {use: flow-euler}`."""

    key: str
    description: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that accepts the section or a string."""
        return core_schema.no_info_before_validator_function(self._section, handler(source))

    def _section(self, value: Any) -> Any:
        return {self.key: value} if isinstance(value, str) else value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return a JSON Schema that allows the section or a string."""
        return {"anyOf": [handler(schema), {"type": "string", "minLength": 1, "description": self.description}]}


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Annotation that writes `anyOf` instead of pydantic's `oneOf` in the JSON Schema of a union with a callable
    discriminator."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return a JSON Schema with all branches in one flat `anyOf`."""
        found = handler(schema)
        return {"anyOf": [inner for branch in found["oneOf"] for inner in branch.get("anyOf", [branch])]}


Use = Annotated[UseBlock, ShortForm("use", "Name of the component.")]
"""A component: its name, or `use` with `options`. In a plugin's options model, name the field after the kind of
component (`detector: Use`); its name and options are then validated when the run file is read."""
