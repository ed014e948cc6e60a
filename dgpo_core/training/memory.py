"""Out-of-memory handling: repeat the work with half the batch size, which gives the same result, and report it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dgpo_core.errors import DgpoError, UserError
from dgpo_core.plugins import contract_checks
from dgpo_core.system.device import mps_is_available
from dgpo_core.system.out_of_memory import device_is_out_of_memory
from dgpo_core.training.scores import check_scores, joined
from dgpo_core.types import Prompt, Rollout, Scores
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone

__all__ = [
    "OutOfMemory",
    "TooLittleMemoryError",
    "attempt",
    "decoded",
    "decoded_media",
    "free",
    "halving",
    "in_halves",
    "in_parts",
    "is_out_of_memory",
]

T = TypeVar("T")
ALONE = "out of memory, with 1 sample"


class TooLittleMemoryError(UserError):
    """A single sample does not fit into memory."""


class OutOfMemory(DgpoError):
    """A batch of a reward does not fit into the memory of the reward's process; half of it may."""

    @staticmethod
    def alone(error: BaseException) -> OutOfMemory:
        """Return the error for a single sample that does not fit, with the text of `error`."""
        text = str(error) if isinstance(error, OutOfMemory) else error_text(error)
        return OutOfMemory(f"{ALONE}: {text.removeprefix(f'{ALONE}: ')}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on the GPU or in host memory."""
    return isinstance(error, OutOfMemory) or device_is_out_of_memory(error)


def attempt(
    work: Callable[[int], T],
    size: int,
    refused: Callable[[BaseException], Exception],
    note: Callable[[BaseException], None] = lambda error: None,
    *,
    smallest: int = 1,
) -> list[T]:
    """Return [work(size)], or [] if it ran out of memory; cached memory is then freed, so half the size may fit.

    smallest: the smallest size to try; if it does not fit, `refused(error)` is raised. note: called with the error if a
    smaller size can be tried.
    """
    try:
        return [work(size)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if size <= smallest:
            raise refused(error) from error
        note(error)
    free()  # outside of the `except` block, whose traceback keeps the attempt's tensors alive
    return []


def halving(
    work: Callable[[int], T], size: int, key: str, on_message: Callable[[str], None], *, again: bool = True
) -> tuple[T, int]:
    """Run work(size) and return (result, size); halve the size whenever memory runs out.

    `work` must be restartable after an error. key: the run file key of `size`, for messages; on_message: called when
    the size is halved; again: whether the work may be restarted. Raises TooLittleMemoryError if it may not, or if a
    size of 1 does not fit.
    """
    refused = TooLittleMemoryError(
        f"{key}: the device runs out of memory with a single sample; lower rollout.resolution, set "
        "backbone.gradient_checkpointing: true or backbone.dtype: bfloat16, or use a smaller model "
        "(`dgpo plan RUN.yaml --fit GIB` shows what fits)"
        if again
        else f"{key}: the device runs out of memory with {size} samples, and a model sharded across processes "
        f"cannot retry with fewer; set `{key}: {max(1, size // 2)}`"
    )
    smallest = 1 if again else size
    while not (done := attempt(work, size, lambda error: refused, smallest=smallest)):
        size //= 2
        on_message(
            f"out of memory: continuing with micro-batches of {size}, with the same result; set `{key}: {size}` to "
            "avoid the failed attempt"
        )
    return done[0], size


def in_parts(
    work: Callable[[slice], T],
    start: int,
    stop: int,
    refused: Callable[[BaseException], Exception],
    note: Callable[[BaseException], None] = lambda error: None,
    *,
    smallest: int = 1,
) -> list[T]:
    """Run work on slice(start, stop), recursively in halves if memory runs out; return the results in order.

    smallest: size of a slice that is not halved.
    """
    done = attempt(lambda size: work(slice(start, stop)), stop - start, refused, note, smallest=smallest)
    if done:
        return done
    middle = (start + stop + 1) // 2
    first = in_parts(work, start, middle, refused, note, smallest=smallest)
    return first + in_parts(work, middle, stop, refused, note, smallest=smallest)


def decoded_media(backbone: Backbone, rollout: Rollout, *, training: bool = False) -> Tensor:
    """Decode the samples of a rollout to media with the backbone; training: with its `decode_rollouts`."""
    decode = backbone.decode_rollouts if training else backbone.decode
    return contract_checks.media(backbone, decoded(decode, rollout.x0), rollout.prompts)


def decoded(decode: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """Return decode(x0), in halves if memory runs out. Raises TooLittleMemoryError if a single latent does not fit."""
    refused = TooLittleMemoryError(
        "decoding: the device runs out of memory with a single sample; lower rollout.resolution, or enable tiled "
        "decoding, if the backbone has an option for it"
    )
    parts = in_parts(lambda part: decode(x0[part]), 0, len(x0), lambda error: refused)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def in_halves(
    score: Callable[[Tensor, Sequence[Prompt]], Scores],
    media: Tensor,
    prompts: Sequence[Prompt],
    note: Callable[[BaseException], None] = lambda error: None,
) -> Scores:
    """Return score(media, prompts), in halves if memory runs out; the last bits of such scores may differ.

    note: called with the error before each halving. Raises OutOfMemory if a single sample does not fit. Each batch is
    first tried whole, so that scores do not depend on earlier batches.
    """

    def scores(part: slice) -> Scores:
        return check_scores(score(media[part], prompts[part]), len(prompts[part]))

    parts = in_parts(scores, 0, len(prompts), OutOfMemory.alone, note)
    return parts[0] if len(parts) == 1 else joined(parts)


def free() -> None:
    """Free the memory of a failed attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if mps_is_available():
        torch.mps.empty_cache()
