"""diffusers and transformers, without what they say to nobody in particular.

Importing a pipeline warns of image processors that Stable Diffusion 3 does not use, and loading draws a bar for every
part. What can really be wrong with a checkpoint is checked in `loading`, and said there once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging as diffusers_logging
import transformers.utils.logging as transformers_logging

__all__ = ["StableDiffusion3Pipeline", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only and no bars from either library inside; their settings come back afterwards."""
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    try:
        for library in LIBRARIES:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


LIBRARIES = (diffusers_logging, transformers_logging)

with quiet():
    from diffusers import StableDiffusion3Pipeline
