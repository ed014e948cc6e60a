"""What `backbone.cache` keeps on disk for a run, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpo_core.system.units import number
from dgpo_core.types import Prompt

if TYPE_CHECKING:
    from dgpo_lab.planning.plan import Model
    from dgpo_schemas.run import RunConfig

__all__ = ["Embeddings", "embeddings_of"]

ENCODERS = "text encoders"
"""Name of the text encoders in `Backbone.components` and `offloaded_modules`."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a run on disk.

    rows: number of distinct prompts and negative prompts; bytes: of all of them; limit: maximum size of the cache in
    bytes; encoders: bytes of the text encoders, which are not loaded once all rows are on disk.
    """

    rows: int
    bytes: int
    limit: int
    encoders: int

    def lines(self) -> list[str]:
        """Describe them."""
        size = f"{self.rows} embeddings, {number(self.bytes / 1e9)} GB"
        if self.bytes > self.limit:
            return [
                f"backbone.cache: {size}, if every prompt is used; max_gb: {self.limit / 1e9:g}",
                f"keeps only the last used ones. All of them need max_gb: {-(-self.bytes // 10**9) + 1}.",
            ]
        return [
            f"backbone.cache: {size} of {self.limit / 1e9:g}. Once they are on disk, the text",
            f"encoders ({self.encoders / 2**30:.2f} GiB, counted above) are not loaded.",
        ]


def embeddings_of(config: RunConfig, model: Model, prompts: Sequence[Prompt]) -> Embeddings | None:
    """Return the embeddings of all prompts of a run; None without `backbone.cache`."""
    section, size = config.backbone.cache, config.rollout.height_width
    if section is None:
        return None
    sized = [prompt.sized(size) for prompt in prompts]
    rows = len({prompt.key for prompt in sized})
    if model.backbone.supports_guidance:
        rows += len({(prompt.negative, prompt.key[1:]) for prompt in sized})
    with model.meter:
        row = model.backbone.encode([model.backbone.example(size)])
    each = sum(tensor.numel() * tensor.element_size() for tensor in row.tensors.values())
    encoders = model.held.get(ENCODERS, 0) + model.offloaded_modules
    return Embeddings(rows, rows * each, int(section.max_gb * 1e9), encoders)
