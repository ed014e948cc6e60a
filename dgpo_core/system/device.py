"""Select the device: CPU or CUDA."""

from __future__ import annotations

import torch

from dgpo_core.errors import UserError

__all__ = ["choose_device"]

NAMES = ("auto", "cpu", "cuda")


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
    return torch.device("cuda", torch.cuda.current_device())
