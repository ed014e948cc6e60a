"""A device that runs out of memory: the work is done in halves, which gives the same result, and that is told."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dgpo_core.errors import DgpoError, UserError
from dgpo_core.plugins import contract_checks
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
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says that means memory: of torch's allocator for the CPU (Linux, Windows), of the driver, and of
libraries that allocate by themselves."""


class TooLittleMemoryError(UserError):
    """Not even a single sample fits."""


class OutOfMemory(DgpoError):
    """A batch of a reward does not fit into the memory of its place; half of it may."""

    @staticmethod
    def alone(error: BaseException) -> OutOfMemory:
        """That a single sample does not fit, as `error` says."""
        text = str(error) if isinstance(error, OutOfMemory) else error_text(error)
        return OutOfMemory(f"{ALONE}: {text.removeprefix(f'{ALONE}: ')}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a card or in the process."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    try:
        text = str(error) if isinstance(error, RuntimeError) else ""
    except BaseException:  # the exceptions of others may raise when they are asked for their text
        return False
    return any(sign in text for sign in SIGNS)


def attempt(
    work: Callable[[int], T],
    size: int,
    refused: Callable[[BaseException], Exception],
    note: Callable[[BaseException], None] = lambda error: None,
    *,
    smallest: int = 1,
) -> list[T]:
    """[work(size)], or [] if memory ran out in it, which is then given back: half of the size may fit.

    smallest: the size below which there is none to try: `refused` of the error is raised; note: else told of the error.
    """
    try:
        return [work(size)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if size <= smallest:
            raise refused(error) from error
        note(error)
    free()  # outside of the `except`, which keeps the attempt's tensors alive
    return []


def halving(
    work: Callable[[int], T], size: int, key: str, on_message: Callable[[str], None], *, again: bool = True
) -> tuple[T, int]:
    """(work(size), size), with half the size whenever memory runs out.

    `work` must leave nothing behind when it raises, or begin anew. key: the setting of the run file that `size` stands
    for; tell: hears of it; again: whether the work may be begun anew. Raises TooLittleMemoryError if it may not, or if
    a size of 1 does not fit.
    """
    refused = TooLittleMemoryError(
        f"{key}: the device runs out of memory with a single sample; lower rollout.resolution, set "
        "backbone.gradient_checkpointing: true or backbone.dtype: bfloat16, or take a smaller model "
        "(`dgpo plan RUN.yaml --fit GIB` tells what fits)"
        if again
        else f"{key}: the device runs out of memory with {size} samples, and a model sharded across the processes "
        f"cannot begin anew; set `{key}: {max(1, size // 2)}`"
    )
    smallest = 1 if again else size
    while not (done := attempt(work, size, lambda error: refused, smallest=smallest)):
        size //= 2
        on_message(
            f"out of memory: micro-batches are of {size} from here on, with the same result; `{key}: {size}` would "
            "have saved the attempt"
        )
    return done[0], size


def in_parts(
    work: Callable[[slice], T],
    start: int,
    stop: int,
    refused: Callable[[BaseException], Exception],
    note: Callable[[BaseException], None] = lambda error: None,
) -> list[T]:
    """[work(slice(start, stop))], or of its halves where memory runs out, and of the halves of those, in order."""
    done = attempt(lambda size: work(slice(start, stop)), stop - start, refused, note)
    if done:
        return done
    middle = (start + stop + 1) // 2
    return in_parts(work, start, middle, refused, note) + in_parts(work, middle, stop, refused, note)


def decoded_media(backbone: Backbone, rollout: Rollout) -> Tensor:
    """What samples show, `decoded` by their backbone."""
    return contract_checks.media(backbone, decoded(backbone.decode, rollout.x0), rollout.prompts)


def decoded(decode: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """decode(x0), in halves if memory runs out. Raises TooLittleMemoryError for a single latent."""
    refused = TooLittleMemoryError(
        "decoding: the device runs out of memory with a single sample; lower rollout.resolution, or have the backbone "
        "decode in smaller parts, if it has an option for that"
    )
    parts = in_parts(lambda part: decode(x0[part]), 0, len(x0), lambda error: refused)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def in_halves(
    score: Callable[[Tensor, Sequence[Prompt]], Scores],
    media: Tensor,
    prompts: Sequence[Prompt],
    note: Callable[[BaseException], None] = lambda error: None,
) -> Scores:
    """`score(media, prompts)`, `in_parts` where memory runs out: the scores that the reward gives for the halves, whose
    last bits may be others than those of the whole.

    note: told before each halving. Raises OutOfMemory where one sample alone does not fit. What fits is tried anew for
    each batch, so that scores depend on the batch alone and not on those before it.
    """

    def scores(part: slice) -> Scores:
        return check_scores(score(media[part], prompts[part]), len(prompts[part]))

    found = in_parts(scores, 0, len(prompts), OutOfMemory.alone, note)
    return found[0] if len(found) == 1 else joined(found)


def free() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
