"""Deterministic algorithms on CUDA (`run.deterministic`)."""

from __future__ import annotations

import os
import re

from dgpo_core.errors import UserError

__all__ = ["make_deterministic", "without_deterministic_form"]

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPRODUCIBLE = (":4096:8", ":16:8")
"""Workspaces of cuBLAS with reproducible results; the first is the faster one, and needs 24 MiB."""
REFUSED = re.compile(r"^(?P<operator>.+?) does not have a deterministic implementation, but you set")
"""How torch refuses an operator (aten/src/ATen/Context.cpp)."""


def make_deterministic() -> None:
    """Let CUDA compute the same bits in every run on the same card and libraries; for the whole process.

    Must be called before cuBLAS is first used. Operators without a deterministic form raise an error afterwards, which
    `without_deterministic_form` explains. Raises UserError if the environment asks cuBLAS for another workspace.
    """
    import torch  # not needed to explain errors

    workspace = os.environ.setdefault(WORKSPACE, REPRODUCIBLE[0])
    if workspace not in REPRODUCIBLE:
        raise UserError(
            f"run.deterministic: the environment variable {WORKSPACE} is {workspace!r}, with which cuBLAS is not "
            f"deterministic; use {REPRODUCIBLE[0]} or {REPRODUCIBLE[1]}, or unset it"
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by their speed at the moment
    torch.backends.cudnn.deterministic = True


def without_deterministic_form(error: BaseException) -> str | None:
    """Return a message if torch refused an operator because it has no deterministic form; None for other errors."""
    try:
        found = REFUSED.search(str(error)) if isinstance(error, RuntimeError) else None
    except BaseException:  # the __str__ of third-party exceptions may raise
        return None
    if found is None:
        return None
    operator = found["operator"]
    return f"run.deterministic: the operator {operator} has no deterministic form on this device; set it to false"
