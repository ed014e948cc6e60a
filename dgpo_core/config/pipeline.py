"""Load configurations from files: read, apply presets, apply overrides, resolve.

Paths in a run file (`prompts.train.file`, `backbone.checkpoint`, `run.output`, and those in plugins' options) are
relative to the working directory, like paths on a command line, not to the run file; `~` is the home directory. The
config.yaml of a run contains absolute paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgpo_core.config.components import PLACES, SERVED
from dgpo_core.config.overrides import apply_overrides
from dgpo_core.config.presets import Preset, with_presets
from dgpo_core.config.reading import read
from dgpo_core.config.resolve import resolve
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.loading import Document
from dgpo_schemas.problems import ConfigError, Problem
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sealing import text_seal
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.serve import ServeConfig

__all__ = ["load_run_config", "load_serve_config", "reward_block_of", "run_config_of"]

_WAS_ACCEPTED = (
    "the run wrote this file with other versions of dgpo or its plugins, which accepted that: use those versions, or "
    "correct the file and delete its first line (its SHA-256) to confirm the change"
)
"""Remedy for errors in a run's own config.yaml: later versions added checks, such as bounds of numbers."""


def load_run_config(
    path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None, *, preset: Preset = None
) -> RunConfig:
    """Read a run file, apply presets and `KEY=VALUE` overrides, and validate the result.

    With a registry, every component in the file must exist and accept its options, and defaults of options are filled
    in. Without one, components are not checked, so that a run directory can be read without its plugins installed.
    Raises ConfigError with every problem, in the file's order.
    """
    document = read(path, "run", overrides)
    if preset is not None:
        assert registry is not None, "presets belong to plugins"
        document = with_presets(document, preset, registry)
    try:
        return run_config_of(apply_overrides(document, overrides), registry)
    except ConfigError as error:
        own = any(problem.where.startswith(f"{path}:") for problem in error.problems)
        if not own or text_seal(Path(path).read_bytes()) != "whole":
            raise
        raise ConfigError([*error.problems, Problem(str(path), "", _WAS_ACCEPTED)]) from None


def run_config_of(document: Document, registry: Registry | None = None) -> RunConfig:
    """Validate a run file that was already read, like `load_run_config`."""
    return resolve(RunConfig, PLACES, document, registry)


def load_serve_config(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> ServeConfig:
    """Read and validate a reward file for `dgpo serve`."""
    return resolve(ServeConfig, SERVED, apply_overrides(read(path, "service", overrides), overrides), registry)


def reward_block_of(document: Document, registry: Registry) -> RewardBlock:
    """Validate a single reward that was already read, like those of a run file."""
    return resolve(RewardBlock, {(): "reward"}, document, registry)
