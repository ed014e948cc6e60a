"""`dgpo train`: train, resume or dry-run a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dgpo_cli.launch import PREEMPTED
from dgpo_cli.options import Accept, Overrides, Preset, Resume, RunFile
from dgpo_cli.working import is_first
from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_cli.console import Loading, PlainProgress
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.training.trainer import Accepted
    from dgpo_schemas.run import RunConfig

__all__ = ["app", "train"]

ResumeHow = Annotated[
    Resume | None,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Continue from the newest checkpoint, bit for bit. --resume auto: start the run if it has none, for jobs "
        "that are queued again with the same command.",
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="RUN[@CHECKPOINT][:MODEL]",
        help="Start from the trained weights of another run (run.init_from): by default its newest checkpoint's ema.",
    ),
]
MaxIterations = Annotated[
    int | None, typer.Option(min=1, help="Stop after this many iterations; the run can be resumed.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Load everything and run one step of each phase; write nothing.")
]
PreemptedOk = Annotated[
    bool,
    typer.Option("--preempted-ok", help="Exit with 0 instead of 75 if SIGTERM, SIGHUP or SIGUSR1 stops the run early."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Processes on this machine: one per GPU, or one per few CPU cores.")
]
Machines = Annotated[
    int, typer.Option(min=1, help="Number of machines; run the same command on each, with its --machine-rank.")
]
MachineRank = Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")]
Address = Annotated[
    str | None, typer.Option(help="Rendezvous address: machine 0 and a free port on it.", metavar="HOST:PORT")
]

MUST = f"--resume={Resume.MUST}"


class Train(TyperCommand):
    """Accepts `--resume` and `--resume auto`: an option with an optional value.

    Click alone would take the next argument, such as the run file, as the value.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the value of each `--resume` that has none."""
        parsed: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                parsed += [word, *words]
            elif word == Resume.AUTO and parsed and parsed[-1] == MUST:
                parsed[-1] = f"--resume={Resume.AUTO}"
            else:
                parsed.append(MUST if word == "--resume" else word)
        return super().parse_args(ctx, parsed)


def train(
    file: RunFile,
    resume: ResumeHow = None,
    overrides: Overrides = None,
    preset: Preset = None,
    init_from: InitFrom = None,
    accept: Accept = None,
    max_iterations: MaxIterations = None,
    dry_run: DryRun = False,
    preempted_ok: PreemptedOk = False,
    quiet: Quiet = False,
    processes: Processes = 1,
    machines: Machines = 1,
    machine_rank: MachineRank = 0,
    address: Address = None,
) -> None:
    """Train a model with Direct Group Preference Optimization.

    Writes runs/NAME: checkpoints, metrics, evaluations and images. Ctrl-C saves and stops; --resume continues the run.

    Examples:

        dgpo train examples/quickstart.yaml

        dgpo train run.yaml --set rollout.group_size=12 --set run.name=g12

        dgpo train run.yaml --resume

        dgpo train run.yaml --resume --set optimizer.learning_rate=1e-5

        dgpo train run.yaml --resume auto

        dgpo train run.yaml --processes 8

        dgpo train examples/sd35-geneval.yaml --preset 24gb

        dgpo train second.yaml --init-from runs/first@best

    Any number of processes computes the same up to rounding, and a run can be resumed with another number of them.

    Exit codes: 0 finished, or stopped by Ctrl-C; 1 stopped itself, state saved; 2 an error of the user or the system;
    3 a process was lost; 75 stopped by SIGTERM, SIGHUP or SIGUSR1, state saved; 130 Ctrl-C twice.
    """
    from dgpo_core.api.training import read_run
    from dgpo_core.plugins.registry import get_registry

    if accept and not resume:
        raise UserError("--accept: requires --resume; a new run has nothing to accept")
    registry = get_registry()
    accepted: list[Accepted] = [one.value for one in accept or []]
    start = [] if init_from is None else [f"run.init_from={json.dumps(init_from)}"]
    config, settings = read_run(file, [*start, *(overrides or [])], preset, registry, resume=resume is not None)
    if processes * machines > 1:
        flags = [word for word, given in (("--quiet", quiet), ("--dry-run", dry_run)) if given]
        command = _command(file, resume, flags, accepted, preset or [], settings, max_iterations)
        code = _launched(command, processes, machines, machine_rank, address)
    elif dry_run:
        code = _dry_run(config, registry, quiet=quiet)
    else:
        code = _train(config, registry, resume, accepted, max_iterations, quiet=quiet)
    if code and not (preempted_ok and code == PREEMPTED):
        raise typer.Exit(code)


app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command("train", cls=Train)(train)


def _command(
    file: Path,
    resume: Resume | None,
    flags: Sequence[str],
    accept: Sequence[str],
    presets: Sequence[str],
    settings: Sequence[str],
    max_iterations: int | None,
) -> list[str]:
    """Return the command line of each process."""
    return [
        *("train", str(file)),
        *([f"--resume={resume}"] if resume else []),
        *flags,
        *(word for one in accept for word in ("--accept", one)),
        *(word for preset in presets for word in ("--preset", preset)),
        *(word for setting in settings for word in ("--set", setting)),
        *(["--max-iterations", str(max_iterations)] if max_iterations is not None else []),
    ]


def _launched(command: Sequence[str], processes: int, machines: int, rank: int, address: str | None) -> int:
    from dgpo_cli.launch import Layout, check, launch

    layout = Layout(processes, machines, rank, address)
    check(layout)
    return launch(layout, command)


def _progress(config: RunConfig, *, quiet: bool) -> tuple[Loading, PlainProgress]:
    """Return what tells that the run is being loaded, and what tells of its iterations."""
    from dgpo_cli.console import Loading, loading, make_progress

    quiet = quiet or not config.logging.console or not is_first()
    what = f"{config.backbone.use} from {config.backbone.checkpoint or 'its package'}"
    if not quiet:
        loading(what)
    return Loading(what, shown=not quiet), make_progress(quiet=quiet)


def _dry_run(config: RunConfig, registry: Registry, *, quiet: bool) -> int:
    loading, progress = _progress(config, quiet=quiet)
    with closing(loading):
        from dgpo_core.training.dry_run import dry_run
        from dgpo_core.training.trainer import Trainer

        trainer = Trainer(config, registry, callbacks=[loading, progress])
        found = dry_run(trainer)
    if trainer.processes.main:
        for name, value in found.items():
            for line in _lines(f"{name}: {value}"):
                typer.echo(line)
        typer.echo("dry run passed; nothing was written")
    return 0


def _train(
    config: RunConfig,
    registry: Registry,
    resume: Resume | None,
    accept: Sequence[Accepted],
    max_iterations: int | None,
    *,
    quiet: bool,
) -> int:
    """Return the exit code."""
    from dgpo_cli.streams import unheeded_output
    from dgpo_core.config.locations import run_path
    from dgpo_core.system.stopping import StopRequest
    from dgpo_schemas.text import shell_word

    (loading, progress), stop = _progress(config, quiet=quiet), StopRequest()
    with unheeded_output(), closing(loading):
        from dgpo_core.api import training

        outcome = training.train(
            config, registry, resume="auto" if resume is Resume.AUTO else resume is not None,
            max_iterations=max_iterations, accept=accept, callbacks=[loading, progress], announce=progress.on_message,
            stop=stop,
        )  # fmt: skip
    if outcome == "finished":
        progress.on_message(f"view the report: dgpo report {shell_word(str(run_path(config)))}")
        return 0
    return 0 if stop.from_keyboard else PREEMPTED


def _lines(text: str) -> list[str]:
    """Wrap a line to the width of the terminal; unchanged for files and pipes."""
    import shutil
    import sys
    import textwrap

    if not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, shutil.get_terminal_size().columns, subsequent_indent="  ")
