"""A device that runs out of memory: the work is done in halves, which gives the same result, and that is told."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dgpo_core.errors import UserError

__all__ = ["TooLittleMemoryError", "decoded", "halving"]

T = TypeVar("T")


class TooLittleMemoryError(UserError):
    """Not even a single sample fits."""


def halving(
    work: Callable[[int], T], size: int, key: str, tell: Callable[[str], None], *, again: bool = True
) -> tuple[T, int]:
    """(work(size), size), with half the size whenever the device runs out of memory.

    `work` must leave nothing behind when it raises, or begin anew. key: the setting of the run file that `size` stands
    for; tell: hears of it; again: whether the work may be begun anew. Raises TooLittleMemoryError if it may not, or if
    a size of 1 does not fit.
    """
    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError as error:
            if not again:
                raise TooLittleMemoryError(
                    f"{key}: the device runs out of memory with {size} samples, and a model that is spread over the "
                    f"processes cannot begin anew; set `{key}: {max(1, size // 2)}`"
                ) from error
            if size <= 1:
                raise TooLittleMemoryError(
                    f"{key}: the device runs out of memory with a single sample; lower rollout.resolution, set "
                    "backbone.gradient_checkpointing: true or backbone.dtype: bfloat16, or take a smaller model "
                    "(`dgpo plan RUN.yaml --fit GIB` tells what fits)"
                ) from error
        size = max(1, size // 2)
        _free()
        tell(
            f"out of memory: micro-batches are of {size} from here on, with the same result; `{key}: {size}` would "
            "have saved the attempt"
        )


def decoded(decode: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """decode(x0), in halves if the device runs out of memory. Raises TooLittleMemoryError for a single latent."""
    try:
        return decode(x0)
    except torch.OutOfMemoryError as error:
        if len(x0) < 2:
            raise TooLittleMemoryError(
                "decoding: the device runs out of memory with a single sample; lower rollout.resolution, or the "
                "backbone's option decode_chunk if it has one"
            ) from error
    _free()
    return torch.cat([decoded(decode, half) for half in torch.split(x0, -(-len(x0) // 2))])


def _free() -> None:
    """Give back what the failed attempt held; outside of its `except`, which keeps its tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
