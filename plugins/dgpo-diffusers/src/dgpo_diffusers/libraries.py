"""diffusers and transformers, without what they say to nobody in particular.

Importing a pipeline warns of image processors that nobody here uses, and loading draws a bar for every
part. What can really be wrong with a checkpoint is checked in `loading`, and said there once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import diffusers.utils.logging as diffusers_logging
import transformers
import transformers.utils.logging as transformers_logging

__all__ = ["library_class", "quiet", "truncated_prompts"]

LIBRARIES = (diffusers_logging, transformers_logging)
"""What the two are told by how much to say."""


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only and no bars from either library inside; their settings come back afterwards.

    Models of diffusers import peft, and that bitsandbytes, if it is there, which warns on some processors of kernels
    that nothing here uses.
    """
    kernels = logging.getLogger("bitsandbytes")
    level = kernels.level
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    try:
        kernels.setLevel(logging.ERROR)
        for library in LIBRARIES:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        kernels.setLevel(level)
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def truncated_prompts(texts: Sequence[str], readers: Sequence[tuple[Any, int]]) -> tuple[Sequence[int], int]:
    """Which texts have more tokens than any reader takes, by their places, and how many tokens are taken at most.

    readers: transformers' tokenizers, with how many tokens are read of what each of them gives.
    """
    left = list(range(len(texts)))
    for tokenizer, limit in sorted(readers, key=lambda reader: -reader[1]):
        if left:
            with quiet():
                found = tokenizer([texts[i] for i in left]).input_ids
            left = [i for i, tokens in zip(left, found, strict=True) if len(tokens) > limit]
    return (left, max(limit for _, limit in readers)) if readers else ((), 0)


def library_class(name: str) -> Any:
    """A class of diffusers or transformers by its name."""
    with quiet():
        found = getattr(diffusers, name, None) or getattr(transformers, name, None)
    assert found is not None, f"neither diffusers nor transformers has a class {name}"
    return found
