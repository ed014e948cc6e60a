"""A cell's process: `dgpo train`, which saves and stops when the process that started it is gone.

    python -m dgpo_cli.ablation.cell PARENT train RUN.yaml [--resume]

Without this a killed `dgpo ablate` would leave cells behind that go on, and hold their directories, unseen.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

__all__ = ["main"]


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str]) -> None:
    """Run a command line of `dgpo` for as long as the process PARENT lives."""
    parent, *command = arguments
    threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    from dgpo_cli.main import main as dgpo

    dgpo(command)


if __name__ == "__main__":
    main(sys.argv[1:])
