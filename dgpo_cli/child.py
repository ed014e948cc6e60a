"""Entry point of a process started by another `dgpo`: it saves and stops when its parent process exits.

    python -m dgpo_cli.child PARENT train RUN.yaml [--resume]

Without it, a killed `dgpo ablate` or `dgpo train --processes` would leave processes behind that keep running and keep
their directories locked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from dgpo_core.system.supervising import end_with_parent

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run a `dgpo` command line as long as the process PARENT is alive."""
    parent, *command = arguments
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may write to the terminal of another process group
    end_with_parent(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
    from dgpo_cli.main import main as dgpo

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        dgpo(command)
        return
    try:
        dgpo(command)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _leave(1)


def _leave(code: int) -> NoReturn:
    """Exit immediately: threads of a process group whose other ranks are gone can abort the interpreter's shutdown."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
