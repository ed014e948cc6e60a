"""`dgpo init`: write a commented run file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.options import Force, Overrides
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_cli.new_run.building import Answers, Built
    from dgpo_cli.new_run.choices import Choices
    from dgpo_core.plugins.registry import Registry

__all__ = ["init"]

SCHEMA = Path("schemas", "json", "run.schema.json")
"""Of a checkout, for editors."""


class Trained(StrEnum):
    """What is trained."""

    LORA = "lora"
    FULL = "full"


File = Annotated[Path, typer.Argument(help="The run file to write.", metavar="RUN.yaml")]
Model = Annotated[
    str | None, typer.Option(help="What to train: miniature, or a backbone of `dgpo plugins list --kind backbone`.")
]
Weights = Annotated[
    str | None, typer.Option(help="Weights of the model: a directory or a Hub repository.", metavar="PATH|REPOSITORY")
]
Reward = Annotated[str | None, typer.Option(help="What to reward: a name of `dgpo plugins list --kind reward`.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Prompts to train on: a .txt or .jsonl file, or a name of `dgpo plugins list --kind prompts`.",
        metavar="FILE|NAME",
    ),
]
Heldout = Annotated[str | None, typer.Option(help="Prompts to evaluate on, in the same form.", metavar="FILE|NAME")]
Card = Annotated[
    str | None, typer.Option(help="Memory of one GPU in GB: applies the model's preset for it.", metavar="GB")
]
Processes = Annotated[int, typer.Option(min=1, help="Number of GPUs, for the commands shown at the end.")]
Train = Annotated[Trained | None, typer.Option(help="Train a LoRA adapter (the default) or all weights.")]
Name = Annotated[str | None, typer.Option(help="Name of the run and of its directory.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: options and defaults alone.")]


def init(
    file: File = Path("run.yaml"),
    model: Model = None,
    weights: Weights = None,
    reward: Reward = None,
    prompts: Prompts = None,
    heldout: Heldout = None,
    card: Card = None,
    processes: Processes = 1,
    train: Train = None,
    name: Name = None,
    overrides: Overrides = None,
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Write a commented run file after a few questions.

    An option answers a question in advance. Without a terminal, or with --yes, nothing is asked: the default is the
    miniature of the quickstart, and for other models the settings of their example. Whatever is written is valid.

    Examples:

        dgpo init

        dgpo init run.yaml --model sd3 --reward pickscore --prompts train.txt --heldout heldout.txt --card 24

        dgpo init flux.yaml --yes --model flux --reward hpsv2 --card 80 --set run.iterations=500

        dgpo init ocr.yaml --yes --reward ocr
    """
    from dgpo_cli.new_run.asking import asked
    from dgpo_cli.new_run.choices import Choices
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_core.system.files import write_text

    _check_free(file, force=force)
    registry = get_registry()
    choices = Choices(registry)
    given = {"model": model, "weights": weights, "reward": reward, "prompts": prompts, "heldout": heldout,
             "card": card, "train": None if train is None else str(train), "name": name}  # fmt: skip
    ask = not yes and _has_terminal()
    try:
        answers, count = asked(given, processes, choices) if ask else (_default(given, choices), processes)
        answers = replace(answers, settings=overrides or ())
        text, built = _text(file, answers, choices, registry, ask=ask)
    except typer.Abort:  # Ctrl-C or the end of the input
        typer.echo("\nnothing was written", err=True)
        raise typer.Exit(130) from None
    if os.path.lexists(file) and not force:  # while questions were asked
        raise UserError(f"{file}: exists; name another file, or replace it with --force")
    write_text(file, text)
    for line in _next(file, built, count, registry):
        typer.echo(line)


def _has_terminal() -> bool:
    """Return whether questions can be asked: they go to standard error."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _check_free(file: Path, *, force: bool) -> None:
    """Raise UserError unless the file can be written."""
    from dgpo_core.errors import UserError
    from dgpo_core.system.files import why_not_writable

    if file.is_dir():
        raise UserError(f"{file}: is a directory; name a file in it, such as {file / 'run.yaml'}")
    if os.path.lexists(file) and not force:
        raise UserError(f"{file}: exists; name another file, or replace it with --force")
    if not file.parent.is_dir():
        raise UserError(f"{file}: no such directory {file.parent}")
    if reason := why_not_writable(file.parent):
        raise UserError(f"{file}: cannot be written: {reason}")


def _default(given: dict[str, str | None], choices: Choices) -> Answers:
    """Return the answers of options and defaults. Raises UserError for a wrong one, and for one without a default."""
    from dgpo_cli.new_run.building import Answers
    from dgpo_core.errors import UserError

    model = given["model"] if given["model"] is not None else choices.default_model()
    if model is None:
        raise UserError(f"--model: name the model to train (models: {', '.join(choices.models) or 'none'})")
    choices.check_model(model)
    reward = given["reward"] if given["reward"] is not None else choices.default_reward(model)
    if reward is None:
        raise UserError(f"--reward: name the reward to train on (rewards: {', '.join(choices.rewards) or 'none'})")
    choices.check_reward(reward)
    return Answers(**{**given, "model": model, "reward": reward})  # type: ignore[arg-type]


def _text(file: Path, answers: Answers, choices: Choices, registry: Registry, *, ask: bool) -> tuple[str, Built]:
    """Return the checked text of the run file. Asks for required options of components if possible."""
    from dgpo_cli.new_run.asking import status
    from dgpo_cli.new_run.building import SOURCE, build, missing
    from dgpo_cli.new_run.questions import text as asked_text
    from dgpo_cli.new_run.writing import commented, head
    from dgpo_cli.validate import checked
    from dgpo_core.config.pipeline import run_config_of
    from dgpo_schemas.loading import parse_yaml
    from dgpo_schemas.problems import ConfigError, Problem

    with status("checking the settings"):
        built = build(answers, choices)
    if ask and (needed := missing(built.document, registry)):
        more = [f"{key}={asked_text(key, meaning, None)}" for key, meaning in needed]
        answers = replace(answers, settings=[*answers.settings, *more])
        built = build(answers, choices)
    with status("checking the settings"):
        try:
            config = run_config_of(built.document, registry)
        except ConfigError as error:
            own = [problem for problem in error.problems if problem.where == SOURCE]
            hint = [Problem(SOURCE, "", "set these keys with --set KEY=VALUE; nothing was written")] if own else []
            raise ConfigError([*error.problems, *hint]) from None
        checked(config, registry)
    text = commented(head(file, answers, built, registry), built.document.data, registry)
    if SCHEMA.is_file():
        text = f"# yaml-language-server: $schema={_schema_from(file.parent)}\n#\n{text}"
    assert parse_yaml(text, str(file)).data == built.document.data, "a comment or quote changed a value"
    return text, built


def _schema_from(directory: Path) -> str:
    """Return the path of SCHEMA for a file in a directory, which may be a symbolic link."""
    start, schema = directory.resolve(), SCHEMA.resolve()
    try:
        place = os.path.relpath(schema, start)
    except ValueError:  # on another drive of Windows
        place = str(schema)
    return clean(place.replace(os.sep, "/"))


def _next(file: Path, built: Built, processes: int, registry: Registry) -> Iterator[str]:
    """Yield what was written, and the commands to continue with."""
    from dgpo_schemas.text import shell_word

    sharded = bool(built.document.data["run"].get("shard"))
    several = max(processes, 2 if sharded else 1)
    launch = f" --processes {several}" if several > 1 else ""
    path = shell_word(str(file))
    yield f"wrote {clean(str(file))}" + (f", with the settings of {built.base.place}" if built.base else "")
    if sharded and processes == 1:
        yield f"the preset {built.preset} shards the weights over several GPUs: two or more are needed"
    if built.memory is not None and built.preset is None:
        yield f"no preset was applied: {built.document.data['backbone']['use']} has none for this run"
    yield "next:"
    yield f"  dgpo validate {path}"
    if "plan" in registry.commands():
        fit = f"--fit {built.memory:g}" if built.memory is not None and built.preset is None else "--card all"
        yield f"  dgpo plan {path} {fit}{launch}"
    yield f"  dgpo train {path}{launch}"
