"""Settings that a resume may change, as declared by the fields of `RunConfig`, and the record of such changes.

Settings that identify the experiment are fixed: the seed, model, adapter and prompts; how groups are generated and
compared; rewards, advantages, objective and training timesteps; the optimizer and its moments (`betas`, `epsilon`,
`bits`). If they changed, one set of logs would describe two experiments.
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
"""Placeholder in a key for the index of a list item."""
_EFFECTS: dict[Any, Effect] = {FROM_THERE_ON[RESUME]: "from there on", ANYTIME[RESUME]: "any time"}


class ChangeRecord(StrictModel):
    """An entry of `changes` in run.json: a setting that a resume changed."""

    iteration: int = Field(ge=0, description="Number of finished iterations when the run resumed with the new value.")
    key: str = Field(min_length=1, description="Dotted key of the setting.")
    was: Any = Field(description="Old value; null if the key was not set.")
    now: Any = Field(description="New value; null if the key is not set.")
    time: str = Field(description="Time of the resume, in UTC, as ISO 8601.")


def changeable() -> dict[str, Effect]:
    """Return the run settings that a resume may change, with the effect of a change.

    A section stands for all keys in it. Indices of list items are ITEM.
    """
    return declared(RunConfig)


def declared(model: type[BaseModel]) -> dict[str, Effect]:
    """Return the settings of any model, such as a plugin's options, that a resume may change. See `changeable`."""
    return dict(_declared(model, ()))


def effect_of(key: str, options: Mapping[str, Effect] | None = None) -> Effect:
    """Return the effect of changing a setting on resume. The innermost declaration applies.

    Args:
        key: Dotted key of the setting.
        options: Declarations of plugin options, by dotted key of the run file.
    """
    parts, exact = generic(key).split("."), key.split(".")
    known, more = changeable(), options or {}
    found = (more.get(".".join(exact[:end]), known.get(".".join(parts[:end]))) for end in range(len(parts), 0, -1))
    return next((effect for effect in found if effect is not None), "fixed")


def generic(key: str) -> str:
    """Replace the indices of list items in a dotted key by ITEM."""
    return re.sub(r"(?<=\.)[0-9]{1,9}(?=\.|\Z)", ITEM, key)


def summary() -> str:
    """Return the keys of `changeable` as short text, grouped by section."""
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
