"""`dgpo serve`: a reward behind HTTP. Its libraries are an extra: `pip install 'dgpo[serve]'`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.serve import ServeConfig

__all__ = ["serve"]

LIBRARIES = ("starlette", "uvicorn", "prometheus_client", "python_multipart")


def serve(config: ServeConfig, registry: Registry, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way; `say` is told what happens, line by line.

    Raises UserError if the libraries are not installed, for a port in use, a missing token, and whatever the reward
    says about its options.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"dgpo serve needs {', '.join(missing)}: pip install 'dgpo[serve]'")
    from dgpo_remote.server.server import run

    run(config, registry, say)
