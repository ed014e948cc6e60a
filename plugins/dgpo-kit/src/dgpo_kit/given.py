"""Input that the contract suite cannot generate by itself. Does not import torch."""

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
    """Input for the checks of a component; most components need none.

    options: the component's options; prompts: for a reward without examples that does not accept the generated prompts;
    section: other keys of its run file section, such as a backbone's `checkpoint`; size: (height, width) in pixels that
    a backbone supports (by default the first supported one of some common sizes).
    """

    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    prompts: Sequence[Prompt] = ()
    section: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: tuple[int, int] | None = None


class NeedsInput(UserError):
    """A component cannot be checked without more input; the message names the required options, prompts or
    checkpoint."""


def prompts_of(texts: Sequence[str], size: tuple[int, int] = (64, 64)) -> list[Prompt]:
    """Create prompts from texts, with the size (height, width) of their samples, as backbones get them."""
    return [Prompt(text, size=size) for text in texts]
