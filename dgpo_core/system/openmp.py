"""Set how long OpenMP threads of torch spin before they sleep. Must run before torch is imported."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__ = ["ALONE", "BESIDE", "KNOWN", "others_at_work", "spin_briefly"]

ALONE = "10000"
"""Spin count of libgomp threads at a barrier on an idle machine. Lower values cost time (1,000 made training 12 %
slower on two cores), higher ones save none. libgomp's default of 300,000 takes milliseconds, during which an idle
thread may block the core for the thread that it waits for."""
BESIDE = "100"
"""Spin count while another program keeps a core busy: waiting threads must release their core immediately."""
KNOWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Environment variables by which users set this: of libgomp, of OpenMP, and of Intel's and LLVM's libraries."""
LOAD = Path("/proc/loadavg")


def others_at_work(samples: int = 5, pause: float = 0.002) -> bool:
    """Return whether another thread is runnable in each of several samples of the load, taken over milliseconds.

    pause: seconds between samples. Always False on systems other than Linux.
    """
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
    """Make waiting threads sleep early, unless an environment variable already sets their wait policy.

    libgomp reads its variables when it is loaded, so this has no effect after torch is imported. Results do not depend
    on it: it leaves the number of threads, which determines the order of summation, unchanged.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in KNOWN):
        os.environ["GOMP_SPINCOUNT"] = BESIDE if others_at_work() else ALONE
