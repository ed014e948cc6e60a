"""Explain torch's refusals of operators, which are the fault of no plugin. Does not import torch."""

from __future__ import annotations

import re

from dgpo_core.system.determinism import without_deterministic_form

__all__ = ["refused_operator"]

NOT_ON_MPS = re.compile(r"The operator '(?P<operator>[^']+)' is not current(ly)? implemented for the MPS device")


def refused_operator(error: BaseException) -> str | None:
    """Return a message if torch refused an operator: under `run.deterministic`, or on MPS; None for other errors."""
    return without_deterministic_form(error) or _not_on_mps(error)


def _not_on_mps(error: BaseException) -> str | None:
    try:
        found = NOT_ON_MPS.search(str(error)) if isinstance(error, NotImplementedError) else None
    except BaseException:  # the __str__ of third-party exceptions may raise
        return None
    if found is None:
        return None
    return (
        f"the operator {found['operator']} is not implemented on MPS; start again with PYTORCH_ENABLE_MPS_FALLBACK=1 "
        "in the environment, with which torch computes it on the CPU, or set run.device: cpu"
    )
