"""Plausibility check of the sizes in a model's config.json against its weights.

The libraries build a model from its configuration before they read the weights, so a wrong digit can take all memory or
hours of time. The weights limit every size of a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo_core.errors import UserError
from dgpo_schemas.problems import show
from dgpo_schemas.text import clean

__all__ = ["check_sizes"]

LAYERS = re.compile(r"(^|_)(layers|blocks)(_|$)")
"""Keys that count layers; each layer has at least one tensor."""
COUNTS = re.compile(r"(^|_)(num|layers|blocks|groups|heads)(_|$)")
"""Keys that count something; some libraries accept -1 until the first image."""
NO_SIZE = re.compile(r"(^|_)theta$")
"""Keys of numbers of any magnitude: the base of rotary position frequencies is 1e6 in Qwen3."""
AXES = ("axes_dims_rope", "axes_dim_rope", "axes_dims")
"""Keys of the sizes of rotary position embeddings by axis, which together have the size of an attention head."""
HEADS = (("hidden_size", "num_attention_heads"), ("dim", "n_heads"))
"""Keys of width and number of heads, for models whose configuration does not have the size of a head."""
LARGEST = 4096
"""Numbers up to this size are always accepted, since image sizes and text lengths are not visible in weights."""
LONGEST = 64
"""Lists up to this length are always accepted."""


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, list[int]], where: str) -> None:
    """Raise UserError for numbers that are too large for a model with these tensors (name to shape).

    where: prefix of messages, such as "backbone.checkpoint: vae: vae/config.json".
    """
    side = max((n for shape in tensors.values() for n in shape), default=0)
    largest = max(LARGEST, side)
    for key, value in _values(config):
        if isinstance(value, list):
            if len(value) > max(LONGEST, len(tensors)):
                raise UserError(f"{where}: {key} has {len(value)} entries, but the weights are {len(tensors)} tensors")
            continue
        if not abs(value) <= largest and not (NO_SIZE.search(key) and math.isfinite(value)):
            raise UserError(
                f"{where}: {key} is {show(value)}, larger than every dimension of the weights (the largest is {side}); "
                "it belongs to another model, or is a mistake"
            )
        if COUNTS.search(key) and not key.endswith("]") and value < 0:
            raise UserError(f"{where}: {key} is {show(value)}; allowed is a number of at least 0")
        if LAYERS.search(key) and not key.endswith("]") and value > len(tensors):
            raise UserError(
                f"{where}: {key} is {show(value)}; allowed is at most {len(tensors)}, the number of its tensors"
            )
    # Position tables of these sizes are computed when the model is built.
    for first, second in (("pos_embed_max_size",) * 2, ("num_attention_heads", "attention_head_dim")):
        one, other = config.get(first), config.get(second)
        if isinstance(one, int) and isinstance(other, int) and one * other > side:
            raise UserError(
                f"{where}: {first} times {second} is {one * other}, larger than every dimension of the weights (the "
                f"largest is {side}); it belongs to another model, or is a mistake"
            )
    _check_axes(config, where)


def _check_axes(config: Mapping[str, Any], where: str) -> None:
    key = next((key for key in AXES if key in config), None)
    head = config.get("attention_head_dim")
    for width, count in HEADS:
        one, other = config.get(width), config.get(count)
        if head is None and isinstance(one, int) and isinstance(other, int) and other > 0:
            head = one // other
    if key is None or not isinstance(head, int):
        return
    axes = config[key]
    valid = isinstance(axes, list) and all(isinstance(n, int) and n > 0 and n % 2 == 0 for n in axes)
    if not valid or sum(axes) != head:
        raise UserError(
            f"{where}: {key} is {clean(str(axes), 100)}; allowed are even numbers with the sum {head}, the size of an "
            "attention head"
        )


def _values(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and lists of a configuration with their keys."""
    pending: list[tuple[str, Any]] = [*section.items()]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            yield key, value
            pending += [(f"{key}[{i}]", inner) for i, inner in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
