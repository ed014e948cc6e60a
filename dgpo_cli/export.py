"""`dgpo export`: a run's weights in the format that the ecosystem loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli import options

if TYPE_CHECKING:
    from dgpo_cli.target import Target
    from dgpo_core.contracts import Backbone

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    output: options.Output = Path("adapter"),
    model: Annotated[str, typer.Option(help="policy, ema_fast or ema.")] = "ema",
    checkpoint: options.Checkpoint = "newest",
    format: Annotated[
        str | None, typer.Option(help="diffusers (the default), peft, kohya or comfyui, as the backbone has them.")
    ] = None,
    force: options.Force = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Where the base model is now: --set backbone.checkpoint=PATH.")
    ] = None,
    accept: options.AcceptBase = None,
    processes: Annotated[
        int, typer.Option(min=1, help="As for other commands; nothing is computed, so one process writes the weights.")
    ] = 1,
) -> None:
    """Write a run's adapter for use without dgpo, its scale (alpha / rank) in the weights.

    After full fine-tuning these are all weights; those that run.shard has spread are put together in the CPU's memory.
    For SD3 and SD3.5: pipe.load_lora_weights("adapter").

    Example:

        dgpo export runs/quickstart --output adapter

        dgpo export runs/quickstart --output comfyui --format comfyui
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK") != "0":  # torchrun has started others too
        return
    from dgpo_cli.output import check_directory
    from dgpo_cli.target import open_target
    from dgpo_core.errors import UserError

    if model == "base":
        raise UserError("--model base: the base model is the checkpoint that the run started from; nothing to export")
    if run.is_file():
        raise UserError(f"{run}: is a run file, which has only its base model; name a run directory")
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run directory")
    check_directory(output, force=force, target=run)
    if format is not None and (run / "config.yaml").is_file():
        _check_meta_model(run, format)
    opened = open_target(
        run, model=model, checkpoint=checkpoint, overrides=overrides or (), accept=accept or (), alone=True
    )
    if format is not None:
        _check_format(run, format, opened.engine.backbone)
    _write(opened, output, format)
    typer.echo(f"{opened.label}: {output}")


def _write(opened: Target, output: Path, format: str | None) -> None:
    """The weights, and dgpo.json: what they belong to and where they come from."""
    import json

    from dgpo_core.system.files import new_directory

    engine, section = opened.engine, opened.engine.config.backbone
    origin = {
        "base": section.checkpoint,
        "revision": section.revision,
        "model": opened.model,
        "base_files": opened.base_files(),
        "iteration": opened.iteration,
    }
    with new_directory(output) as aside:
        with engine.policy.activate(opened.model):
            if engine.backbone.adapter is None:
                engine.backbone.save_weights(aside)
            else:
                engine.backbone.adapter.save(aside, format or engine.backbone.adapter.formats[0])
        (aside / "dgpo.json").write_text(json.dumps(origin, indent=1) + "\n")


def _check_meta_model(run: Path, format: str) -> None:
    """Raise UserError for a format that this run cannot be written in, if the backbone says so before it is loaded."""
    from dgpo_core.config.migration.earlier import check_run
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.plugins.registry import get_registry

    check_run(run)
    registry = get_registry()
    section = load_run_config(run / "config.yaml", registry=registry).backbone
    if section.train == "full":
        _check_format(run, format, None)
    part = registry.find("backbone", section.use)
    options = registry.options_model(part).model_validate(section.options)
    try:
        backbone = registry.implementation(part).meta_model(section, options)
    except Exception:  # it has none, or its checkpoint is elsewhere now (`--set`): the loaded model is asked
        return
    _check_format(run, format, backbone)


def _check_format(run: Path, format: str, backbone: Backbone | None) -> None:
    """Raise UserError for a format that this backbone, or one without an adapter, cannot be written in."""
    from dgpo_core.errors import UserError
    from dgpo_schemas.problems import nearest

    if backbone is None or backbone.adapter is None:
        raise UserError(
            f"--format {format}: is a format of adapters, and {run} has none, it trained every weight "
            "(backbone.train: full); leave --format out"
        )
    formats = backbone.adapter.formats
    if format not in formats:
        raise UserError(f"--format {format}: choose one of {', '.join(formats)}{nearest(format, formats)}")
