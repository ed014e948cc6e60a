"""Train a run: read its configuration, handle signals, and report its end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dgpo_core.config.locations import recalled, run_path, with_paths
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.config.presets import Preset
from dgpo_core.errors import UserError
from dgpo_core.storage.description import CONFIG, read_config
from dgpo_core.system.spelling import option
from dgpo_schemas.base import NAME

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.system.stopping import StopRequest
    from dgpo_core.training.callbacks import Callback
    from dgpo_core.training.state import RunState
    from dgpo_core.training.trainer import Accepted, Resume
    from dgpo_schemas.run import RunConfig

__all__ = ["read_run", "train"]


def read_run(
    file: Path, overrides: Sequence[str], preset: Preset, registry: Registry, *, resume: bool
) -> tuple[RunConfig, list[str]]:
    """Return the configuration, and the settings that produce it from the run file.

    For a resume, the settings include the location of the run, and relative paths that do not exist from the working
    directory are replaced by those that they meant at the start of the run."""
    settings = [*(_place_of(file) if resume else []), *overrides]
    config = load_run_config(file, settings, registry, preset=preset)
    found = _paths_then(file, config, settings, registry) if resume else {}
    if not found:
        return config, settings
    more = [f"{key}={json.dumps(path)}" for key, path in found.items()]
    return with_paths(config, found, registry), [*more, *settings]


def train(
    config: RunConfig,
    registry: Registry,
    *,
    resume: Resume = False,
    max_iterations: int | None = None,
    accept: Collection[Accepted] = (),
    callbacks: Sequence[Callback] = (),
    announce: Callable[[str], None],
    stop: StopRequest | None = None,
) -> Literal["finished", "interrupted"]:
    """Train to the end, or `max_iterations` more; see `Trainer.train`.

    In the main thread Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save the state and stop the run. announce: called with a
    message for such a signal, and about the end of the run. stop: tells afterwards which signal it was.
    """
    from dgpo_core.system.stopping import StopRequest
    from dgpo_core.training.trainer import Trainer

    stop = stop or StopRequest()
    in_main_thread = threading.current_thread() is threading.main_thread()
    with stop.on_signals(announce) if in_main_thread else nullcontext():
        trainer = Trainer(config, registry, callbacks=callbacks, stop=stop)
        outcome = trainer.train(resume=resume, max_iterations=max_iterations, accept=accept)
    if outcome == "finished" and (message := _end(config, trainer.state)) is not None:
        announce(message)
    return outcome


def _end(config: RunConfig, state: RunState) -> str | None:
    """Return why a finished run ended early, or the iterations that are left; None if all were trained."""
    if state.had_ended:
        return f"the run already ended after iteration {state.iteration}; nothing is left to train"
    if state.ended_by is None:
        left = config.run.iterations - state.iteration
        return f"{left} iterations are left; continue with {option('resume', True)}"
    if state.ended_by != "iterations":
        return f"stop.{state.ended_by} is reached after {state.iteration} iterations"
    return None


def _paths_then(file: Path, config: RunConfig, overrides: Sequence[str], registry: Registry) -> dict[str, str]:
    """Return relative paths that do not exist from the working directory, by key, as they were when the run began."""
    directory = run_path(config)
    if not (directory / CONFIG).is_file():
        return {}
    own = (directory / CONFIG).samefile(file)
    found = recalled(config, read_config(directory, registry), registry, own=own)
    given = [override.partition("=")[0].strip() for override in overrides]
    return {k: was for k, was in found.items() if not any(k == one or k.startswith(f"{one}.") for one in given)}


def _place_of(file: Path) -> list[str]:
    """Return settings that make a run resumed from its own config.yaml, even if moved, stay in that directory."""
    directory = file.absolute().parent
    if file.name != CONFIG or not (directory / "checkpoints").is_dir():
        return []
    if not re.match(NAME, directory.name):
        raise UserError(
            f"{directory}: a resumed run takes the name of its directory, which may contain only letters, digits, "
            "dots, dashes and underscores; rename it"
        )
    return [f"run.output={json.dumps(str(directory.parent))}", f"run.name={json.dumps(directory.name)}"]
