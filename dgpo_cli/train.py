"""`dgpo train`: train, resume, or try out a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dgpo_cli.options import Accept, Preset, Resume

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig

__all__ = ["app", "train"]


MUST = f"--resume={Resume.MUST}"


class Train(TyperCommand):
    """`--resume` by itself, or `--resume auto`: an option whose value may be left out.

    Click would take whatever follows for the value, the run file too.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the value that is meant behind each `--resume`."""
        meant: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                meant += [word, *words]
            elif word == Resume.AUTO and meant and meant[-1] == MUST:
                meant[-1] = f"--resume={Resume.AUTO}"
            else:
                meant.append(MUST if word == "--resume" else word)
        return super().parse_args(ctx, meant)


def train(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")],
    resume: Annotated[
        Resume | None,
        typer.Option(
            "--resume",
            metavar="[auto]",
            help="Continue from the newest checkpoint, bit for bit. --resume auto: begin the run if it has none, for "
            "jobs that are queued again with the same command.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set optimiser.learning_rate=1e-4.", metavar="KEY=VALUE"),
    ] = None,
    preset: Preset = None,
    accept: Accept = None,
    max_iterations: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many iterations (they can be resumed).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, draw, score and train one micro-batch, write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one a card (or one a few CPU cores).")
    ] = 1,
    machines: Annotated[
        int, typer.Option(min=1, help="Machines; start the same command on each, with its --machine-rank.")
    ] = 1,
    machine_rank: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="Where the machines meet: machine 0 and a free port of it.", metavar="HOST:PORT")
    ] = None,
) -> None:
    """Train a model with Direct Group Preference Optimization.

    Writes runs/NAME: checkpoints, metrics, evaluations and pictures. Ctrl-C saves and stops; --resume goes on.

    Examples:

        dgpo train examples/quickstart.yaml

        dgpo train run.yaml --set rollout.group_size=12 --set run.name=g12

        dgpo train run.yaml --resume

        dgpo train run.yaml --resume --set optimiser.learning_rate=1e-5

        dgpo train run.yaml --resume auto

        dgpo train run.yaml --processes 8

        dgpo train examples/sd35-geneval.yaml --preset 24gb

    Any number of processes computes the same up to rounding, and a run can be resumed with another number of them.
    """
    from dgpo_core.config.resolve import load_run_config
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry

    if accept and not resume:
        raise UserError("--accept: belongs to --resume; a new run begins with what there is")
    overrides = [*_place_of(file), *(overrides or [])] if resume else overrides
    registry = get_registry()
    config = load_run_config(file, overrides or [], registry, preset=preset)
    if resume and (more := _places_then(file, config, overrides or [], registry)):
        overrides = [*more, *(overrides or [])]
        config = load_run_config(file, overrides, registry, preset=preset)

    if processes * machines > 1:
        from dgpo_cli.launch import Layout, check, launch

        check(layout := Layout(processes, machines, machine_rank, address))
        command = ["train", str(file), *([f"--resume={resume}"] if resume else []), *(["--quiet"] if quiet else [])]
        command += ["--dry-run"] if dry_run else []
        command += [word for one in accept or [] for word in ("--accept", one.value)]
        command += [] if preset is None else ["--preset", preset]
        command += [word for override in overrides or [] for word in ("--set", override)]
        command += [] if max_iterations is None else ["--max-iterations", str(max_iterations)]
        raise typer.Exit(launch(layout, command))

    from dgpo_cli.console import make_progress
    from dgpo_cli.streams import unheeded_output
    from dgpo_core.system.stopping import StopRequest
    from dgpo_core.training.trainer import Trainer, run_path
    from dgpo_schemas.text import shell_word

    progress = make_progress(quiet=quiet or not config.logging.console or int(os.environ.get("RANK", "0")) > 0)
    if dry_run:
        from dgpo_core.training.rehearsal import rehearse

        trainer = Trainer(config, registry, callbacks=[progress])
        found = rehearse(trainer)
        if trainer.processes.main:
            for name, value in found.items():
                for line in _lines(f"{name}: {value}"):
                    typer.echo(line)
            typer.echo("dry run passed; nothing was written")
        return
    stop = StopRequest()
    with unheeded_output(), stop.on_signals(progress.on_message):
        trainer = Trainer(config, registry, callbacks=[progress], stop=stop)
        outcome = trainer.train(
            resume="auto" if resume is Resume.AUTO else resume is not None,
            max_iterations=max_iterations,
            accept=[one.value for one in accept or []],
        )
    if outcome == "finished":
        state, say = trainer.state, progress.on_message
        if state.had_ended:
            say(f"the run had ended after iteration {state.iteration} already; nothing was left to train")
        elif state.ended_by is None:
            say(f"{config.run.iterations - state.iteration} iterations are left; continue with --resume")
        elif state.ended_by != "iterations":
            say(f"stop.{state.ended_by} is reached after {state.iteration} iterations")
        say(f"look at it: dgpo report {shell_word(str(run_path(config)))}")


app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command("train", cls=Train)(train)


def _lines(text: str) -> list[str]:
    """A fact as it is, but wrapped where it goes to a terminal."""
    import shutil
    import sys
    import textwrap

    if not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, shutil.get_terminal_size().columns, subsequent_indent="  ")


def _places_then(file: Path, config: RunConfig, overrides: Sequence[str], registry: Registry) -> list[str]:
    """Settings for relative paths that mean nothing from here: where they led when the run began."""
    import json

    from dgpo_core.config.locations import recalled
    from dgpo_core.storage.description import read_config
    from dgpo_core.training.trainer import run_path

    directory = run_path(config)
    if not (directory / "config.yaml").is_file():
        return []
    own = (directory / "config.yaml").samefile(file)
    found = recalled(config, read_config(directory, registry), registry, own=own)
    given = [override.partition("=")[0].strip() for override in overrides]
    return [
        f"{key}={json.dumps(was)}"
        for key, was in found.items()
        if not any(key == one or key.startswith(f"{one}.") for one in given)
    ]


def _place_of(file: Path) -> list[str]:
    """Settings for a run that goes on from its own config.yaml: it is where that file is, though it was moved since."""
    directory = file.absolute().parent
    if file.name != "config.yaml" or not (directory / "checkpoints").is_dir():
        return []
    import json
    import re

    from dgpo_core.errors import UserError
    from dgpo_schemas.run import NAME

    if not re.match(NAME, directory.name):
        raise UserError(
            f"{directory}: a run goes on under the name of its directory, which must be of letters, digits, dots, "
            "dashes and underscores; rename it"
        )
    return [f"run.output={json.dumps(str(directory.parent))}", f"run.name={json.dumps(directory.name)}"]
