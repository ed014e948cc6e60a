"""Use of diffusers and transformers without their warnings and progress bars.

Importing a pipeline warns about image processors that are not used here, and loading shows a progress bar for every
component. `loading` checks checkpoints and reports each problem once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers
import diffusers.utils.logging as diffusers_logging
import transformers
import transformers.utils.logging as transformers_logging

__all__ = ["library_class", "quiet", "truncated_prompts"]

LIBRARIES = (diffusers_logging, transformers_logging)
"""Modules that set the verbosity of the two libraries."""


@contextmanager
def quiet() -> Iterator[None]:
    """Limit both libraries to errors, without progress bars, and restore their settings afterwards.

    The same applies to bitsandbytes, which diffusers imports through peft: on some CPUs it warns about kernels that are
    not used here.
    """
    kernels = logging.getLogger("bitsandbytes")
    level = kernels.level
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    try:
        _set_level(kernels, logging.ERROR)
        for library in LIBRARIES:
            _set_verbosity(library, logging.ERROR)
            library.disable_progress_bar()
        yield
    finally:
        _set_level(kernels, level)
        for library, verbosity, bars in before:
            _set_verbosity(library, verbosity)
            if bars:
                library.enable_progress_bar()


# A level that is set, even to what it is, empties the caches of all loggers, which is most of the cost of `quiet`.


def _set_level(logger: logging.Logger, level: int) -> None:
    if logger.level != level:
        logger.setLevel(level)


def _set_verbosity(library: Any, verbosity: int) -> None:
    if library.get_verbosity() != verbosity:
        library.set_verbosity(verbosity)


def truncated_prompts(texts: Sequence[str], readers: Sequence[tuple[Any, int]]) -> tuple[Sequence[int], int]:
    """Return the indices of texts with more tokens than any reader supports, and the largest supported number.

    readers: tokenizers of transformers, each with the number of tokens that its text encoder reads.
    """
    left = list(range(len(texts)))
    for tokenizer, limit in sorted(readers, key=lambda reader: -reader[1]):
        if left:
            with quiet():
                found = tokenizer([texts[i] for i in left]).input_ids
            left = [i for i, tokens in zip(left, found, strict=True) if len(tokens) > limit]
    return (left, max(limit for _, limit in readers)) if readers else ((), 0)


@cache
def library_class(name: str) -> Any:
    """Return a class of diffusers or transformers by name."""
    with quiet():
        found = getattr(diffusers, name, None) or getattr(transformers, name, None)
    assert found is not None, f"neither diffusers nor transformers has a class {name}"
    return found
