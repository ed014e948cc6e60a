"""What the contract suite cannot make up by itself. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt

__all__ = ["Given", "NeedsInput", "prompts_of"]


@dataclass(frozen=True, slots=True)
class Given:
    """What a component is checked with; everything has a default, and most components need none of it.

    options: its options; prompts: of a reward that refuses the generated ones and has no examples; section: other
    keys of its section of a run file (a backbone's `checkpoint` above all); size: (height, width) in pixels that a
    backbone can draw (by default the first of some usual ones).
    """

    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    prompts: Sequence[Prompt] = ()
    section: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: tuple[int, int] | None = None


class NeedsInput(UserError):
    """A component cannot be checked as it is: the message says which options, prompts or checkpoint it wants."""


def prompts_of(texts: Sequence[str], size: tuple[int, int] = (64, 64)) -> list[Prompt]:
    """Prompts of these texts alone, as a backbone is given them: with the size (height, width) of their samples."""
    return [Prompt(text, size=size) for text in texts]
