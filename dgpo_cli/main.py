"""`dgpo`: the entry point, and exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from dgpo_cli.commands import Commands
from dgpo_cli.log import OneLine, announce_retries
from dgpo_cli.streams import guarded_errors, guarded_output
from dgpo_core.errors import UserError
from dgpo_core.system.openmp import spin_briefly
from dgpo_core.system.reading import why
from dgpo_schemas.text import clean

__all__ = ["app", "guarded", "main"]


class _SystemFailure(Exception):
    """An OSError that no command has handled."""

    def __init__(self, error: OSError) -> None:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{' and '.join(named)}: {why(error)}" if named else why(error)
        super().__init__(clean(f"{what} ({type(error).__name__} at {frame.filename}:{frame.lineno})"))


class Program(Commands):
    """The `dgpo` command; errors of the operating system become messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Typer alone would exit silently for every broken pipe, even one of a plugin."""
        try:
            os.getcwd()
        except FileNotFoundError:
            raise UserError("the working directory no longer exists; change to another one") from None
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise _SystemFailure(error) from error
        except Exception as error:
            if _is_old_option(error):
                raise UserError("--view is now --model (old is ema_fast, slow is ema)") from None
            raise


def _is_old_option(error: Exception) -> bool:
    """Return whether --view was used, an option of `sample`, `evaluate` and `export` in dgpo 0.1."""
    command = getattr(getattr(error, "ctx", None), "info_name", None)
    return getattr(error, "option_name", None) == "--view" and command in ("sample", "evaluate", "export")


app = typer.Typer(
    name="dgpo", cls=Program, no_args_is_help=True, rich_markup_mode=None, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["--help", "-h"]},
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        from dgpo_core import __version__

        typer.echo(f"dgpo {__version__}")
        raise typer.Exit


@app.callback()
def dgpo(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Post-train diffusion and flow models with Direct Group Preference Optimization.

    A run file describes the model, the prompts and the rewards. It is checked before any model is loaded:

        dgpo validate examples/quickstart.yaml

        dgpo train examples/quickstart.yaml

        dgpo evaluate runs/quickstart

    `dgpo COMMAND --help` explains a command, `dgpo plugins list` shows what a run file may use.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit.

    Exit codes: 0: finished, or stopped by Ctrl-C after saving. 1: the run stopped itself after saving. 2: a user error
    or an error of the operating system. 3: another process of the run was lost. 75: stopped by another signal after
    saving (`launch.PREEMPTED`). 130: immediate Ctrl-C, nothing saved. 141: the reader of standard output is gone.
    """
    guarded(lambda: app(arguments, prog_name="dgpo"))


def guarded(program: Callable[[], object]) -> None:
    """Run a command-line program; user errors become one message and an exit code (see `main`)."""
    spin_briefly()
    if not os.environ.get("COLUMNS", "80").strip().lstrip("0"):
        del os.environ["COLUMNS"]  # rich would print nothing with zero columns
    if logging.lastResort is not None:  # handles warnings if no other handler is set
        logging.lastResort.setFormatter(OneLine())
    # peft imports it, if installed; on some processors it then warns about kernels that dgpo does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    announce_retries()
    with guarded_errors():
        try:
            with guarded_output():
                program()
        except KeyboardInterrupt:
            sys.exit(130)
        except BaseException as error:
            code = _exit_code(error)
            blamed = _blame(error) if code is None else None
            if code is None and blamed is None:
                raise  # a normal exit, or a bug of dgpo that needs its traceback
            typer.echo(blamed or str(error), err=True)
            sys.exit(1 if code is None else code)


def _blame(error: BaseException) -> str | None:
    """Return the message of an exception raised by a plugin, SystemExit included; None for others."""
    if "dgpo_core.plugins.registry" not in sys.modules:
        return None
    if (
        isinstance(error, SystemExit) and error.code == 130
    ):  # Ctrl-C may have left half-imported modules; import nothing more
        return None
    from dgpo_core.plugins.registry import get_registry

    return get_registry().blame(error)


def _exit_code(error: BaseException) -> int | None:
    from dgpo_core.errors import ProcessLostError, RunStopped

    problems = sys.modules.get("dgpo_schemas.problems")  # if it is not imported, it has raised nothing
    if isinstance(error, (UserError, _SystemFailure, *([problems.ConfigError] if problems else []))):
        return 2
    if isinstance(error, ProcessLostError):
        return 3
    return 1 if isinstance(error, RunStopped) else None
