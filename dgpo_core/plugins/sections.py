"""Reject settings of the `backbone` section that the selected backbone does not support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dgpo_core.contracts.backbone import SECTION_KEYS, Backbone
from dgpo_core.errors import PluginError, UserError
from dgpo_schemas.problems import nearest
from dgpo_schemas.sections.backbone import BackboneSection, LoraSection

__all__ = ["asks_for_more", "check_section"]


def asks_for_more(section: BackboneSection) -> bool:
    """Return whether a section sets more than the checkpoint and the LoRA rank and alpha, so that it needs checking."""
    if section.train == "full" or section.cache is not None:
        return True
    return any(key not in ("lora.rank", "lora.alpha") for key, _ in _set(section))


def check_section(implementation: type[Backbone], section: BackboneSection) -> None:
    """Raise UserError, naming the key, if a section sets a key that the class does not support (`Backbone.uses`).

    Keys with their default value count as not set, because a run's config.yaml contains every key. Raises PluginError
    if `uses` contains unknown keys.
    """
    uses = implementation.uses
    if not isinstance(uses, frozenset | set) or not uses <= SECTION_KEYS:
        unknown = sorted(map(str, uses - SECTION_KEYS)) if isinstance(uses, frozenset | set) else [repr(uses)]
        raise PluginError(
            f"backbone {section.use}: {implementation.__name__}.uses contains {unknown[0]}"
            f"{nearest(unknown[0], SECTION_KEYS)}; allowed: {', '.join(sorted(SECTION_KEYS))}"
        )
    mode = f"train: {section.train}"
    if mode not in uses:
        others = sorted(key for key in uses if key.startswith("train: "))
        raise UserError(
            f"backbone.train: {section.use} does not support `{mode}`; use `{others[0]}`"
            if others
            else f"backbone.train: {section.use} does not support training: its class declares no `train` mode"
        )
    for key, value in _set(section):
        if key not in uses:
            raise UserError(
                f"backbone.{key}: {value} has no effect, because {section.use} does not support this key; remove it"
            )
    if section.cache is not None and implementation.encoder_identity is Backbone.encoder_identity:
        raise UserError(
            f"backbone.cache: {section.use} does not support this key: its class does not say what its embeddings "
            "depend on (`Backbone.encoder_identity`); remove it"
        )
    if "checkpoint" not in uses and section.checkpoint.startswith("package:"):
        raise UserError(
            f"backbone.checkpoint: {section.use} does not read a checkpoint and ignores {section.checkpoint}; use any "
            "name without `package:`"
        )


def _set(section: BackboneSection) -> Iterator[tuple[str, Any]]:
    """Yield the keys, except `checkpoint` and `train`, with values other than the default."""
    for key in ("revision", "dtype", "gradient_checkpointing", "compile"):
        value = getattr(section, key)
        if value != BackboneSection.model_fields[key].default:
            yield key, str(value).lower() if isinstance(value, bool) else value
    if section.train == "lora":
        for key, field in LoraSection.model_fields.items():
            value = getattr(section.lora, key)
            if value != field.default:
                yield f"lora.{key}", value
