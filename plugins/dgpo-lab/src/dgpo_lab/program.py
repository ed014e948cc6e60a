"""Entry point for programs that build on the lab, such as the experiments."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from dgpo_cli.options import number_option
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.system.openmp import spin_briefly
from dgpo_schemas.problems import ConfigError

__all__ = ["number_option", "program"]


def program(function: Callable[..., object]) -> None:
    """Run a function as a Typer command line.

    Prints a message and exits with code 2 for a user error, and with code 1 if the run stopped itself.
    """
    spin_briefly()
    try:
        typer.run(function)
    except (UserError, ConfigError, RunStopped) as error:
        typer.echo(str(error), err=True)
        sys.exit(1 if isinstance(error, RunStopped) else 2)
