"""Programs that stand on the lab, such as the experiments: one function, called with the words of a command line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from dgpo_core.errors import RunStopped, UserError
from dgpo_core.system.openmp import spin_briefly
from dgpo_schemas.problems import ConfigError

__all__ = ["program"]


def program(function: Callable[..., object]) -> None:
    """Run a function whose parameters are those of Typer; a user's mistake is one message and exit code 2, a run that
    has stopped itself one and exit code 1."""
    spin_briefly()
    try:
        typer.run(function)
    except (UserError, ConfigError, RunStopped) as error:
        typer.echo(str(error), err=True)
        sys.exit(1 if isinstance(error, RunStopped) else 2)
