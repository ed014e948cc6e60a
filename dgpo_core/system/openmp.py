"""How long torch's threads spin before they sleep, chosen before torch is loaded."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__ = ["ALONE", "BESIDE", "KNOWN", "others_at_work", "spin_briefly"]

ALONE = "10000"
"""Turns that a thread of libgomp waits at a barrier before it asks the system to be woken, where nothing else runs.
Fewer cost time (1,000 made training 12 % slower on two cores), more gain none; libgomp's own 300,000 are milliseconds,
in which a thread that has nothing to do may keep the core from the one that it waits for."""
BESIDE = "100"
"""The same where another program keeps a core busy: then waiting threads have to make room at once."""
KNOWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables with which people choose that themselves: libgomp's, OpenMP's, and Intel's and LLVM's."""
LOAD = Path("/proc/loadavg")


def others_at_work(samples: int = 5, pause: float = 0.002) -> bool:
    """Whether something else wants a core each time that Linux is asked, within some milliseconds; False elsewhere."""
    for i in range(samples):
        time.sleep(pause if i else 0)
        try:
            runnable = int(LOAD.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if runnable <= 1:  # this process
            return False
    return True


def spin_briefly() -> None:
    """Have threads sleep soon while they wait, unless the environment says how they are to wait.

    libgomp reads its variables when it is loaded, so this comes before torch; afterwards it does nothing. What is
    computed does not depend on it: the number of threads, which sums depend on, stays as it is.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in KNOWN):
        os.environ["GOMP_SPINCOUNT"] = BESIDE if others_at_work() else ALONE
