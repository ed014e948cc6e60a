"""What a run file says of a backbone that the backbone has no use for: refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dgpo_core.contracts.backbone import SECTION_KEYS
from dgpo_core.errors import PluginError, UserError
from dgpo_schemas.problems import nearest
from dgpo_schemas.sections.backbone import BackboneSection, LoraSection

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone

__all__ = ["asks_for_more", "check_section"]


def asks_for_more(section: BackboneSection) -> bool:
    """Whether a section sets more than the checkpoint and an adapter's size, which is when some may have no use for
    it."""
    return section.train == "full" or any(key not in ("lora.rank", "lora.alpha") for key, _ in _set(section))


def check_section(implementation: type[Backbone], section: BackboneSection) -> None:
    """Raise UserError, naming the key, if a section sets what the class does not use (`Backbone.uses`).

    What is as it is by default counts as not set: a run's own config.yaml writes every key down. Raises PluginError if
    the class declares no such keys.
    """
    uses = implementation.uses
    if not isinstance(uses, frozenset | set) or not uses <= SECTION_KEYS:
        strange = sorted(map(str, uses - SECTION_KEYS)) if isinstance(uses, frozenset | set) else [repr(uses)]
        raise PluginError(
            f"backbone {section.use}: {implementation.__name__}.uses names {strange[0]}"
            f"{nearest(strange[0], SECTION_KEYS)}; there are {', '.join(sorted(SECTION_KEYS))}"
        )
    way = f"train: {section.train}"
    if way not in uses:
        others = sorted(key for key in uses if key.startswith("train: "))
        raise UserError(
            f"backbone.train: {section.use} cannot be trained with `{way}`; write `{others[0]}`"
            if others
            else f"backbone.train: {section.use} cannot be trained at all: it declares neither way of it"
        )
    for key, value in _set(section):
        if key not in uses:
            raise UserError(
                f"backbone.{key}: {value} has no effect, because {section.use} does not use this key; leave it out"
            )
    if "checkpoint" not in uses and section.checkpoint.startswith("package:"):
        raise UserError(
            f"backbone.checkpoint: {section.use} reads no checkpoint, so that {section.checkpoint} would not be looked "
            "for; write any name without `package:`"
        )


def _set(section: BackboneSection) -> Iterator[tuple[str, Any]]:
    """Keys that are not as they are by default, but those that say how to train, with their values."""
    for key in ("revision", "dtype", "gradient_checkpointing", "compile"):
        value = getattr(section, key)
        if value != BackboneSection.model_fields[key].default:
            yield key, str(value).lower() if isinstance(value, bool) else value
    if section.train == "lora":
        for key, field in LoraSection.model_fields.items():
            value = getattr(section.lora, key)
            if value != field.default:
                yield f"lora.{key}", value
