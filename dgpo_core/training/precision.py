"""Choose which parts of the network's passes are computed fast: `precision.adapter` and `precision.norms`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpo_core.errors import PluginError, UserError

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_schemas.run import RunConfig

__all__ = ["Choice", "choose", "described", "speed_up"]

PARTS = ("adapter", "norms")


@dataclass(frozen=True)
class Choice:
    """Whether a part is fast; reason: why not, or what the backbone says of it."""

    fast: bool
    reason: str = ""

    def __str__(self) -> str:
        return ("fast" if self.fast else "exact") + (f" ({self.reason})" if self.reason else "")


def described(choices: Mapping[str, Choice]) -> str:
    """Return the choices as one line."""
    return ", ".join(f"{part} {choice}" for part, choice in choices.items())


def choose(config: RunConfig, supported: frozenset[str], device: str) -> dict[str, Choice]:
    """Return the choice of each part.

    supported: `Backbone.supports_fast`; device: type of the device that the run is on or is planned for.
    Raises UserError for a part that is to be fast and cannot be.
    """
    return {part: _choose(config, part, supported, device) for part in PARTS}


def _choose(config: RunConfig, part: str, supported: frozenset[str], device: str) -> Choice:
    setting: str = getattr(config.precision, part)
    backbone = config.backbone
    if setting == "exact":
        return Choice(False)
    if part not in supported:
        if setting == "fast":
            raise UserError(f"precision.{part}: the backbone {backbone.use} has no fast form of it; use auto or exact")
        return Choice(False, "no fast form")
    if setting == "fast":
        return Choice(True)
    conditions = {
        f"on {device}": device == "cuda",
        f"backbone.train: {backbone.train}": backbone.train == "lora",
        f"backbone.dtype: {backbone.dtype}": backbone.dtype == "bfloat16",
        f"precision.autocast: {config.precision.autocast}": config.precision.autocast == "bf16",
        "backbone.lora.dora": part != "adapter" or not backbone.lora.dora,
    }
    failed = next((reason for reason, holds in conditions.items() if not holds), None)
    return Choice(failed is None, failed or "")


def speed_up(backbone: Backbone, config: RunConfig, device: str) -> dict[str, Choice]:
    """Make the chosen parts of a backbone fast. Returns the choice of each part, with what the backbone says of it."""
    choices = choose(config, backbone.supports_fast, device)
    parts = [part for part, choice in choices.items() if choice.fast]
    if not parts:
        return choices
    try:
        said = backbone.speed_up(parts)
    except NotImplementedError as error:
        raise PluginError(
            f"backbone {config.backbone.use}: `supports_fast` contains {', '.join(parts)}, but {error}"
        ) from error
    return choices | {part: Choice(True, said.get(part, "")) for part in parts}
