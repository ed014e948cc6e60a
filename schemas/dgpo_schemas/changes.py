"""What a resumed run may change, as the fields of `RunConfig` declare it, and how a change is recorded.

Fixed is what makes a run this run: its seed, model, adapter and prompts; how groups are drawn and compared; rewards,
advantages, objective and training times; the kind of optimizer with its moments (`betas`, `epsilon`, `bits`). With
another of these the logs would tell of two experiments as if they were one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from dgpo_schemas.annotations import items_of, models_of
from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, RESUME, StrictModel
from dgpo_schemas.run import RunConfig

__all__ = ["ITEM", "ChangeRecord", "Effect", "changeable", "declared", "effect_of", "generic", "summary"]

Effect = Literal["fixed", "from there on", "any time"]
ITEM = "N"
"""Stands for the number of an item of a list in a key."""
_EFFECTS: dict[Any, Effect] = {FROM_THERE_ON[RESUME]: "from there on", ANYTIME[RESUME]: "any time"}


class ChangeRecord(StrictModel):
    """One of `changes` in run.json: a setting that a resume changed."""

    iteration: int = Field(ge=0, description="Iterations finished when the run went on with the new value.")
    key: str = Field(min_length=1, description="Dotted key of the setting.")
    was: Any = Field(description="Value until then; null if the key was not there.")
    now: Any = Field(description="Value from then on; null if the key is not there.")
    time: str = Field(description="When the run went on, in UTC, as ISO 8601.")


def changeable() -> dict[str, Effect]:
    """Every setting that a resume may change, a section for all that is in it, to what a change does. Numbers of items
    are ITEM."""
    return declared(RunConfig)


def declared(model: type[BaseModel]) -> dict[str, Effect]:
    """The same of the settings of any model, such as that of a plugin's options."""
    return dict(_declared(model, ()))


def effect_of(key: str, options: Mapping[str, Effect] | None = None) -> Effect:
    """What changing the setting with this dotted key on a resume does: the innermost declaration holds.

    options: what plugins declare of their options, by dotted keys of the run file.
    """
    parts, exact = generic(key).split("."), key.split(".")
    known, more = changeable(), options or {}
    found = (more.get(".".join(exact[:end]), known.get(".".join(parts[:end]))) for end in range(len(parts), 0, -1))
    return next((effect for effect in found if effect is not None), "fixed")


def generic(key: str) -> str:
    """A dotted key with ITEM for the numbers of items."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", ITEM, key)


def summary() -> str:
    """`changeable` in a line or two: keys of one section together."""
    sections: dict[str, list[str]] = {}
    for key in changeable():
        section, _, rest = key.partition(".")
        if rest and section not in sections.get("", []):
            sections.setdefault(section, []).append(rest)
        elif not rest:
            sections.setdefault("", []).append(key)
    whole = sections.pop("", [])
    named = [f"{section}.{{{', '.join(keys)}}}" if len(keys) > 1 else f"{section}.{keys[0]}"
             for section, keys in sections.items() if section not in whole]  # fmt: skip
    return ", ".join([*named, *whole])


def _declared(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, Effect]]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        extra = field.json_schema_extra
        effect = _EFFECTS.get(extra.get(RESUME)) if isinstance(extra, dict) else None
        if effect is not None:
            yield ".".join(here), effect
        for inner in models_of(field.annotation):
            yield from _declared(inner, here)
        for item in items_of(field.annotation):
            for inner in models_of(item):
                yield from _declared(inner, (*here, ITEM))
