"""A family's layers under the names of its first publication, which other programs go by.

There one layer may be several of diffusers' side by side, and layers that give scale and shift may give them in the
other order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.lora import Pairs

__all__ = ["Names"]

MLP = 4
"""How many times as wide as the model the hidden layer of a block is."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """diffusers' names to the original ones.

    blocks: how the names of a block's layers begin, with * for a number, to how they begin originally and what follows
    in place of what, or None if that is the same. Names with spaces between are of layers that are one there, in this
    order; widths: their numbers of outputs as multiples of the model's width, by default 4 for those of an MLP and 1
    for others. outside: every other layer. swapped: layers whose two halves, scale and shift, change places where they
    have just these two. comfyui: the prefix that ComfyUI looks for, "transformer" before diffusers' names, whose place
    it finds by itself, "diffusion_model" before the original ones.
    """

    blocks: Mapping[str, tuple[str, Mapping[str, str] | None]]
    outside: Mapping[str, str]
    widths: Mapping[str, Fraction] = field(default_factory=dict)
    swapped: Collection[str] = ()
    comfyui: Literal["transformer", "diffusion_model"] = "diffusion_model"

    def original_pairs(self, pairs: Pairs) -> Pairs:
        """Pairs by the original names. Raises KeyError for a layer that is not known."""
        found: dict[str, tuple[Sequence[str], dict[str, tuple[Tensor, Tensor]]]] = {}
        for name, (down, up) in pairs.items():
            original, inner, layers = self._original(name)
            if inner in self.swapped and len(up) == 2 * down.shape[1]:
                up = torch.cat(up.chunk(2)[::-1])
            found.setdefault(original, (layers, {}))[1][inner] = (down, up)
        return {name: side_by_side(parts, layers, self.widths) for name, (layers, parts) in found.items()}

    def comfyui_pairs(self, pairs: Pairs) -> Pairs:
        """Pairs by the keys that ComfyUI looks up."""
        named = pairs if self.comfyui == "transformer" else self.original_pairs(pairs)
        return {f"{self.comfyui}.{name}": pair for name, pair in named.items()}

    def _original(self, name: str) -> tuple[str, str, Sequence[str]]:
        """The layer that holds this one, this one's name in its block, and the names of all that it holds."""
        for ours, (theirs, inside) in self.blocks.items():
            if block := re.match(re.escape(ours).replace(r"\*", r"(\d+)") + r"\.", name):
                inner, start = name[block.end() :], theirs.replace("*", (*block.groups(), "")[0])
                for names, original in ({inner: inner} if inside is None else inside).items():
                    if inner in names.split():
                        return f"{start}.{original}", inner, names.split()
                raise KeyError(name)
        return self.outside[name], name, (name,)


def side_by_side(
    parts: Mapping[str, tuple[Tensor, Tensor]], layers: Sequence[str], widths: Mapping[str, Fraction]
) -> tuple[Tensor, Tensor]:
    """One pair (A, B) for a layer of several: each writes its own outputs, and those that are not adapted get zeros.

    widths: as those of `Names`.
    """
    if len(layers) == 1:
        return parts[layers[0]]
    downs = torch.cat([down for down, _ in parts.values()])
    outputs = [int(downs.shape[1] * widths.get(layer, MLP if "mlp" in layer else 1)) for layer in layers]
    ups, column = torch.zeros(sum(outputs), len(downs)), 0
    for layer, (down, up) in parts.items():
        first = sum(outputs[: layers.index(layer)])
        ups[first : first + len(up), column : column + len(down)] = up
        column += len(down)
    return downs, ups
