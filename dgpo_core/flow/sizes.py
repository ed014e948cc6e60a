"""Sizes of samples. A prompt can set its own size, shared by its group; a micro-batch has a single size."""

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
"""Prefix of a backbone's messages about sizes, replaced if the size is a prompt's own."""
FEW = 4
"""Maximum number of sizes that are listed individually."""
SHOWN = 60
"""Maximum characters of a prompt in a message."""


def bucket(backbone: Backbone, prompt: Prompt) -> Hashable:
    """Return the batching key of a prompt: its size and `Backbone.bucket`. Equal keys can share a micro-batch."""
    from dgpo_core.plugins import contract_checks  # imports torch, which is slow

    return prompt.size, contract_checks.bucket(backbone, prompt)


def runs(values: Sequence[Hashable]) -> list[slice]:
    """Return slices of consecutive equal values: [a, a, b, a] -> 0:2, 2:3, 3:4."""
    ends = [i for i in range(1, len(values) + 1) if i == len(values) or values[i] != values[i - 1]]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def different(prompts: Sequence[Prompt], resolution: Size) -> list[Size]:
    """Return the distinct sizes of the prompts, in order of first occurrence."""
    return list(dict.fromkeys(prompt.size or resolution for prompt in prompts))


def largest(prompts: Sequence[Prompt], resolution: Size) -> Size:
    """Return the size with the most pixels; `resolution` if there are no prompts."""
    return max(different(prompts, resolution), key=lambda size: size[0] * size[1], default=resolution)


def named(sizes: Sequence[Size]) -> str:
    """Format sizes as height x width: all of them if few, otherwise the smallest and the largest."""
    words = [f"{height}x{width}" for height, width in sorted(sizes, key=lambda size: (size[0] * size[1], size))]
    return ", ".join(words) if len(words) <= FEW else f"{len(words)} sizes from {words[0]} to {words[-1]}"


def check_sizes(
    backbone: Backbone, prompts: Sequence[Prompt], resolution: Size, setting: str = "rollout.resolution"
) -> None:
    """Raise UserError for a size that the backbone does not support, naming the first prompt with that size.

    Each size is checked once. setting: the key of the run file that sets `resolution`.
    """
    _check_size(backbone, resolution, f"{setting}: ")
    known = {resolution}
    for prompt in prompts:
        size = prompt.size
        if size is not None and size not in known:
            _check_size(backbone, size, f"{prompt.origin or f'the prompt {clean(prompt.text, SHOWN)!r}'}: size: ")
            known.add(size)


def _check_size(backbone: Backbone, size: Size, where: str) -> None:
    from dgpo_core.plugins import contract_checks

    try:
        contract_checks.latent_shape(backbone, size)
    except PluginError:
        raise
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(KEY)}") from error
