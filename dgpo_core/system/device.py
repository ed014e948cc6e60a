"""Select the device, CPU or CUDA, and how its memory is allocated."""

from __future__ import annotations

import os
import sys

import torch

from dgpo_core.errors import UserError

__all__ = ["choose_device"]

NAMES = ("auto", "cpu", "cuda")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables by which users configure torch's allocator: its name, and former ones that torch still reads"""


def choose_device(name: str, key: str = "run.device") -> torch.device:
    """Return the device for the setting `key`: one of NAMES, where `auto` is the current CUDA device if available.

    Raises UserError for any other name, and if CUDA is requested but not available.
    """
    if name not in NAMES:
        raise UserError(f"{key} {name}: choose one of {', '.join(NAMES)}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            f"{key}: cuda is not available: torch finds no CUDA device "
            f"(torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}); use auto or cpu"
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    expand_segments()
    return torch.device("cuda", torch.cuda.current_device())


def expand_segments() -> None:
    """Let torch's allocator grow its segments, unless the user has configured it.

    Rollouts, decoding and updates need tensors of other sizes; in segments of a fixed size each phase would leave holes
    that the next one cannot use. torch reads the setting when it first uses the allocator, so this has no effect
    afterwards. Workers inherit it.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
