"""Whether the sizes in a model's config.json can be those of the weights beside it.

The libraries build a model from its configuration before they look at the weights, so that a digit too many there takes
all memory, or hours. Every size of a model is found again in its weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo_core.errors import UserError
from dgpo_schemas.problems import show

__all__ = ["check_sizes"]

LAYERS = re.compile(r"(^|_)(layers|blocks)(_|$)")
"""Settings that count layers: each has a tensor at least."""
COUNTS = re.compile(r"(^|_)(num|layers|blocks|groups|heads)(_|$)")
"""Settings that count something; some libraries take -1 until the first image."""
LARGEST = 4096
"""Any number may be so large: sizes of images and lengths of texts stand in no weights."""
LONGEST = 64
"""Any list may be so long."""


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, list[int]], where: str) -> None:
    """Raise UserError for numbers that are larger than any model's with these tensors (name to shape).

    where: what messages begin with, such as "backbone.checkpoint: vae: vae/config.json".
    """
    side = max((n for shape in tensors.values() for n in shape), default=0)
    largest = max(LARGEST, side)
    for key, value in _values(config):
        if isinstance(value, list):
            if len(value) > max(LONGEST, len(tensors)):
                raise UserError(f"{where}: {key} has {len(value)} entries, but the weights are {len(tensors)} tensors")
            continue
        if not abs(value) <= largest:
            raise UserError(
                f"{where}: {key} is {show(value)}, larger than every side of the tensors beside it (the largest is "
                f"{side}); it belongs to another model, or is a slip"
            )
        if COUNTS.search(key) and not key.endswith("]") and value < 0:
            raise UserError(f"{where}: {key} is {show(value)}; allowed are numbers from 0 on")
        if LAYERS.search(key) and not key.endswith("]") and value > len(tensors):
            raise UserError(
                f"{where}: {key} is {show(value)}; allowed is {len(tensors)} at most, for so many tensors are beside it"
            )
    # Tables of positions of these sizes are computed when the model is built.
    for first, second in (("pos_embed_max_size",) * 2, ("num_attention_heads", "attention_head_dim")):
        one, other = config.get(first), config.get(second)
        if isinstance(one, int) and isinstance(other, int) and one * other > side:
            raise UserError(
                f"{where}: {first} times {second} is {one * other}, larger than every side of the tensors beside it "
                f"(the largest is {side}); it belongs to another model, or is a slip"
            )


def _values(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers and lists of a configuration with their keys, from outer to inner ones."""
    waiting: list[tuple[str, Any]] = [*section.items()]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            yield key, value
            waiting += [(f"{key}[{i}]", inner) for i, inner in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
