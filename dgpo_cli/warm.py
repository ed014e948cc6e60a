"""Entry point of the process from which an ablation's cells are forked (`dgpo_core.system.forking`).

    python -m dgpo_cli.warm DESCRIPTOR

It imports what the first cells have imported. What they have done besides, such as finding plugins, every cell does
itself.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence

from dgpo_cli import child
from dgpo_core.plugins.isolation import undone
from dgpo_core.system.forking import serve, why_not_forkable
from dgpo_core.system.openmp import spin_briefly

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Serve until the ablation ends; a forked process runs its command line as `dgpo_cli.child` does."""
    job = serve(int(arguments[0]), _imported)
    if job is not None:
        sys.argv = [str(child.__file__), str(job.server), *job.arguments]
        with job.running():
            child.main(sys.argv[1:])


def _imported(names: Sequence[str]) -> str | None:
    """Import modules; return why cells cannot be forked, if they cannot.

    A module that cannot be imported by its name is left to the cells, and one that changes the state of the process,
    which only a cell can report.
    """
    spin_briefly()
    with undone() as changed:
        for name in names:
            if name not in sys.modules:
                with contextlib.suppress(Exception, SystemExit):
                    importlib.import_module(name)
    return f"an import changes {', '.join(changed)}" if changed else why_not_forkable()


if __name__ == "__main__":
    main(sys.argv[1:])
