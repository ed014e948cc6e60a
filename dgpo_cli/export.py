"""`dgpo export`: write a run's weights in the formats of other tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli import options
from dgpo_cli.working import working

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    output: options.Output = Path("adapter"),
    model: Annotated[str, typer.Option(help="policy, ema_fast or ema.")] = "ema",
    checkpoint: options.Checkpoint = "newest",
    format: Annotated[
        str | None,
        typer.Option(
            help="diffusers (the default), peft, kohya or comfyui, if the backbone supports it; merged: all weights of "
            "the denoiser with the adapter merged, in the base model's data type, merged-float32: in float32."
        ),
    ] = None,
    force: options.Force = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Path of the base model if it was moved: --set backbone.checkpoint=PATH."),
    ] = None,
    accept: options.AcceptBase = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Accepted for consistency; one process writes the weights.")
    ] = 1,
) -> None:
    """Write a run's adapter for use without dgpo, its scale (alpha / rank) in the weights.

    After full fine-tuning, all weights are written; sharded weights (run.shard) are gathered in CPU memory.
    In diffusers: pipe.load_lora_weights("adapter").

    Examples:

        dgpo export runs/quickstart --output adapter

        dgpo export runs/quickstart --output comfyui --format comfyui

        dgpo export runs/quickstart --output model --format merged
    """
    if (
        int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK") != "0"
    ):  # torchrun started other processes too
        return
    from dgpo_cli.opening import note
    from dgpo_core.api.exporting import check_export
    from dgpo_core.api.output import check_directory

    check_export(run, model, format)
    check_directory(output, force=force, target=run)
    with working(f"loading {run}") as work:
        from dgpo_core.api import exporting
        from dgpo_core.api.target import open_target

        opened = open_target(
            run,
            model=model,
            checkpoint=checkpoint,
            overrides=overrides or (),
            accept=accept or (),
            alone=True,
            on_message=note,
        )
        work.say(f"writing {output}")
        exporting.export(opened, output, format)
    typer.echo(f"{opened.label}: {output}")
