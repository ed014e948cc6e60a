"""A process that another `dgpo` has started: it saves and stops when that one is gone.

    python -m dgpo_cli.child PARENT train RUN.yaml [--resume]

Without this a killed `dgpo ablate` or `dgpo train --processes` would leave processes behind that go on, and hold their
directories, unseen.
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
    """Run a command line of `dgpo` for as long as the process PARENT lives."""
    parent, *command = arguments
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may write to a terminal that is another process group's
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
    """End at once: the threads of a group whose other processes are gone can abort the interpreter's own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
