"""Sizes of samples: a prompt may have its own, a group has its prompt's, and a micro-batch holds one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from dgpo_core.errors import PluginError, UserError
from dgpo_core.types import Prompt
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone

__all__ = ["Size", "bucket", "check_sizes", "different", "largest", "named", "runs"]

Size = tuple[int, int]
"""(height, width) in pixels."""
KEY = "rollout.resolution: "
"""What a backbone's messages about a size begin with, which a prompt's own size is not to be called."""
FEW = 4
"""Sizes that are listed one by one."""
SHOWN = 60
"""Characters of a prompt in a message."""


def bucket(backbone: Backbone, prompt: Prompt) -> Hashable:
    """What samples have in common that may share a micro-batch: the size, and whatever `Backbone.bucket` says."""
    from dgpo_core.plugins import contract_checks  # with torch, which takes a while to import

    return prompt.size, contract_checks.bucket(backbone, prompt)


def runs(values: Sequence[Hashable]) -> list[slice]:
    """Where equal neighbors are: [a, a, b, a] -> 0:2, 2:3, 3:4."""
    ends = [i for i in range(1, len(values) + 1) if i == len(values) or values[i] != values[i - 1]]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def different(prompts: Sequence[Prompt], resolution: Size) -> list[Size]:
    """The sizes that occur, each once, in the order of their coming."""
    return list(dict.fromkeys(prompt.size or resolution for prompt in prompts))


def largest(prompts: Sequence[Prompt], resolution: Size) -> Size:
    """The size of most pixels among them; the run's if there are no prompts."""
    return max(different(prompts, resolution), key=lambda size: size[0] * size[1], default=resolution)


def named(sizes: Sequence[Size]) -> str:
    """Sizes in words, as height x width: all of a few, else the smallest and the largest."""
    words = [f"{height}x{width}" for height, width in sorted(sizes, key=lambda size: (size[0] * size[1], size))]
    return ", ".join(words) if len(words) <= FEW else f"{len(words)} sizes from {words[0]} to {words[-1]}"


def check_sizes(
    backbone: Backbone, prompts: Sequence[Prompt], resolution: Size, setting: str = "rollout.resolution"
) -> None:
    """Raise UserError for a size that the backbone cannot draw, with the place of the first prompt that has it. Each
    size is asked about once. setting: where `resolution` comes from."""
    _ask(backbone, resolution, f"{setting}: ")
    known = {resolution}
    for prompt in prompts:
        size = prompt.size
        if size is not None and size not in known:
            _ask(backbone, size, f"{prompt.origin or f'the prompt {clean(prompt.text, SHOWN)!r}'}: size: ")
            known.add(size)


def _ask(backbone: Backbone, size: Size, where: str) -> None:
    from dgpo_core.plugins import contract_checks

    try:
        contract_checks.latent_shape(backbone, size)
    except PluginError:
        raise
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(KEY)}") from error
