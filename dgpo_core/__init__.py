"""Post-train diffusion and flow models: the Python API, and the contracts of plugins.

Runs: `load_run` reads a run file, `Run.open` opens a run directory; a `Run` trains, resumes, samples, evaluates and
exports. `score` asks a reward about images. `functional` is the objective on plain tensors, for loops of your own.

Plugins take what they need from its modules: `types` and `contracts` for what they implement, `hookspecs` for how they
are found, and `hookimpl` from here.

Importing this package imports nothing heavy; names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgpo_core.errors import RunStopped, UserError
from dgpo_core.hookspecs import hookimpl
from dgpo_core.system.version import __version__

if TYPE_CHECKING:
    from dgpo_core import functional
    from dgpo_core.api.evaluating import EvaluationResult
    from dgpo_core.api.run import Run, load_run
    from dgpo_core.api.samples import Samples
    from dgpo_core.api.scoring import score
    from dgpo_core.training.callbacks import Callback
    from dgpo_core.types import Prompt, Scores

__all__ = [
    "Callback",
    "EvaluationResult",
    "Prompt",
    "Run",
    "RunStopped",
    "Samples",
    "Scores",
    "UserError",
    "__version__",
    "functional",
    "hookimpl",
    "load_run",
    "score",
]

_HOMES = {
    "Callback": "training.callbacks",
    "EvaluationResult": "api.evaluating",
    "Prompt": "types",
    "Run": "api.run",
    "Samples": "api.samples",
    "Scores": "types",
    "load_run": "api.run",
    "score": "api.scoring",
}
"""Where names come from that are imported when they are first used."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "functional":
        return import_module("dgpo_core.functional")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"dgpo_core.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
