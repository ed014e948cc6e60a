"""Suppress the progress bars and key tables that transformers prints when loading.

The module `loading` checks checkpoints itself and reports each problem once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers.utils.logging as transformers_logging

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and progress bars of transformers, and restore its settings and torch's random state on exit.

    The random state changes because networks are initialized with random numbers before their weights are loaded.
    """
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
