"""How long torch's threads spin before they sleep, said before torch is loaded."""

from __future__ import annotations

import os
import sys

__all__ = ["KNOWN", "SPINS", "spin_briefly"]

SPINS = "500"
"""Turns that a thread of libgomp waits at a barrier before it asks the system to be woken: some 20 microseconds, about
what waking up takes. Its own 300,000 are milliseconds, in which a thread that has nothing to do keeps the core from the
one that it waits for, if any other program is at work."""
KNOWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables with which people choose that themselves: libgomp's, OpenMP's, and Intel's and LLVM's."""


def spin_briefly() -> None:
    """Have threads sleep soon while they wait, unless the environment says how they are to wait.

    libgomp reads its variables when it is loaded, so this comes before torch; afterwards it does nothing. What is
    computed does not depend on it: the number of threads, which sums depend on, stays as it is.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in KNOWN):
        os.environ["GOMP_SPINCOUNT"] = SPINS
