"""Fill the cache of prompt embeddings (`backbone.cache`) before a run, with the model's encoders alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dgpo_core.data.checks import check_prompts
from dgpo_core.data.notes import longer_than_read
from dgpo_core.data.prompts import load_sources
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import check_sizes
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.storage.embeddings import encoder_directories
from dgpo_core.system.hub import prepare_hub
from dgpo_core.system.units import number
from dgpo_core.training.policy import ConditioningCache, negative_key, prompt_key
from dgpo_core.training.stored_rows import StoredRows, open_stored_rows

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Prompt
    from dgpo_schemas.run import RunConfig

__all__ = ["Filled", "fill_cache"]

CHUNK = 16
"""Prompts that are encoded while the encoders are on the device, if they are offloaded."""
TRIED = 16
"""Number of embeddings that the size of all of them is estimated from, if their lengths differ."""


@dataclass(frozen=True)
class Filled:
    """What is on disk for a run: the number of its embeddings, how many of them are new, and bytes of all of them."""

    directory: Path
    rows: int
    new: int
    bytes: int


def fill_cache(
    config: RunConfig,
    registry: Registry,
    *,
    on_message: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Filled:
    """Encode all prompts and negative prompts of a run, and their condition media, that are not on disk yet.

    on_progress: receives the number of embeddings that are done, and of all. May be interrupted and called again, also
    by several processes at once. Raises UserError without `backbone.cache`, for prompts that cannot be loaded or that
    the model does not accept, if the embeddings exceed `backbone.cache.max_gb`, and if they cannot be written.
    """
    if config.backbone.cache is None:
        raise UserError("backbone.cache: not set, so embeddings are not kept; add `cache: {}` to `backbone`")
    process_state = ProcessState()
    with closing(Runtime(config)) as runtime:
        prompts = _prompts(config, registry, process_state)
        prepare_hub()
        with process_state.around(f"backbone {config.backbone.use}, when it was made,"):
            backbone: Backbone = registry.create(
                "backbone", config.backbone, constructor="encoder_model", device=runtime.device
            )
        check_prompts(backbone, prompts)
        check_sizes(backbone, prompts, config.rollout.height_width)
        if config.run.shard:  # processes without samples of their own run the example
            prompts.append(backbone.example(config.rollout.height_width))
        sized = [prompt.sized(config.rollout.height_width, backbone.fps) for prompt in prompts]
        if (longer := longer_than_read(sized, backbone)) is not None:
            on_message(longer)
        stored = open_stored_rows(config, backbone, runtime.device)
        assert stored is not None
        return _Filling(backbone, stored, sized).fill(on_message, on_progress)


def _prompts(config: RunConfig, registry: Registry, process_state: ProcessState) -> list[Prompt]:
    splits: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
    found: list[Prompt] = []
    for split in splits:
        with process_state.around(f"prompts.{split}"):
            found += [p for source in load_sources(config.prompts, split, registry) for p in source.prompts]
    return found


class _Filling:
    """The embeddings of a run: key to its prompt, conditional ones first."""

    def __init__(self, backbone: Backbone, stored: StoredRows, prompts: Sequence[Prompt]) -> None:
        self.stored = stored
        self.cache = ConditioningCache(backbone, stored=stored, limit_bytes=0)
        self.prompts: dict[Hashable, Prompt] = {}
        for prompt in prompts:
            self.prompts.setdefault(prompt_key(prompt), prompt)
        self.first_negative = len(self.prompts)
        for prompt in prompts if backbone.supports_guidance else ():
            self.prompts.setdefault(negative_key(prompt), prompt)
        self.keys = list(self.prompts)

    def fill(self, on_message: Callable[[str], None], on_progress: Callable[[int, int], None]) -> Filled:
        count = len(self.keys)
        there = [size for key in self.keys if (size := self.stored.size(key)) is not None]
        encoders = encoder_directories(self.stored.directory, "backbone.cache.directory")
        others = sum(one.bytes for one in encoders) - sum(there)
        tried = self._tried()
        total = 0
        for done, (_, size) in enumerate(self._encoded(tried), 1):
            total += size
            on_progress(done, count)
        expected = -(-total * count // len(tried))
        self._check_limit(expected)
        if others + expected > self.stored.limit:
            on_message(
                f"{self.stored.directory} has {number(others / 1e9)} GB of other embeddings, of which the least "
                f"recently used are deleted; to keep all, set backbone.cache.max_gb: {_enough(others + expected)}"
            )
        self._check_kept([self.keys[place] for place in tried])
        rest = sorted(set(range(count)) - set(tried))
        for done, (key, size) in enumerate(self._encoded(rest), len(tried) + 1):
            total += size
            self._check_limit(total)
            self._check_kept([key])
            on_progress(done, count)
        return Filled(self.stored.directory, count, count - len(there), total)

    def _tried(self) -> list[int]:
        """Return the places of some keys, of all kinds, sizes and lengths of prompts."""

        def kind(place: int) -> tuple[object, ...]:
            prompt = self.prompts[self.keys[place]]
            negative = place >= self.first_negative
            return negative, prompt.size, len((prompt.negative or "") if negative else prompt.text)

        order = sorted(range(len(self.keys)), key=kind)
        count = min(TRIED, len(order))
        return sorted(order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count))

    def _encoded(self, places: Sequence[int]) -> Iterator[tuple[Hashable, int]]:
        """Encode what is missing; yield each key with the bytes of its embedding: on disk, or else in memory."""
        for negative in (False, True):
            mine = [self.keys[place] for place in places if (place >= self.first_negative) is negative]
            encode = self.cache.unconditional_rows if negative else self.cache.rows
            for keys in (mine[start : start + CHUNK] for start in range(0, len(mine), CHUNK)):
                rows = encode([self.prompts[key] for key in keys])
                for key, row in zip(keys, rows, strict=True):
                    yield key, self.stored.size(key) or sum(t.numel() * t.element_size() for t in row.tensors.values())

    def _check_kept(self, keys: Sequence[Hashable]) -> None:
        """Raise UserError if an embedding that was encoded is not on disk."""
        if any(self.stored.size(key) is None for key in keys):
            raise UserError(
                f"backbone.cache: an embedding is not kept in {self.stored.directory}; see the warning above, or, if "
                "there is none, whether another process deletes files there"
            )

    def _check_limit(self, needed: int) -> None:
        """Raise UserError if `needed` bytes exceed the maximum."""
        if needed > self.stored.limit:
            raise UserError(
                f"backbone.cache.max_gb: {self.stored.limit / 1e9:g} is too small for the {len(self.keys)} embeddings "
                f"of this run, which take about {number(needed / 1e9)} GB; set at least {_enough(needed)}"
            )


def _enough(needed: int) -> int:
    """Return whole gigabytes that hold `needed` bytes, with room to spare."""
    return -(-needed // 10**9) + 1
