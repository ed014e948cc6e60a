"""Where to compute: the one place that chooses between the CPU and a card."""

from __future__ import annotations

import torch

from dgpo_core.errors import UserError

__all__ = ["choose_device"]

NAMES = ("auto", "cpu", "cuda")


def choose_device(name: str, key: str = "run.device") -> torch.device:
    """The device for the setting `key`: of NAMES, where `auto` is this process's CUDA card if there is one.

    Raises UserError for another name, and if CUDA is asked for and absent.
    """
    if name not in NAMES:
        raise UserError(f"{key} {name}: choose one of {', '.join(NAMES)}")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(
            f"{key}: cuda was asked for, but torch sees no CUDA device "
            f"(torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}); use auto or cpu"
        )
    if name == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
