"""transformers, without what it says to nobody in particular.

Loading draws bars and prints tables of keys. What can really be wrong with a checkpoint is checked in `loading`, and
said there once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers.utils.logging as transformers_logging

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only and no bars inside, and no draw that others notice: a network is filled with random numbers before
    its weights arrive. Settings and torch's random state come back afterwards."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
