"""`dgpo sample`: draw images or videos from a run or a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli import options
from dgpo_cli.working import working

__all__ = ["sample"]


def sample(
    context: typer.Context,
    target: options.TargetPath,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt for every --prompt.", metavar="TEXT")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--media", help="Image or video that conditions every --prompt; may be repeated.", metavar="PATH"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="A .txt, .jsonl or .json file of prompts.")] = None,
    output: options.Output = Path("samples"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples of each prompt.")] = 4,
    model: options.ModelName = None,
    checkpoint: options.Checkpoint = "newest",
    seed: Annotated[int, typer.Option(help="Seed of the noise: the same seed gives every model the same noise.")] = 0,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of held-out prompts if no prompts are given.")] = 8,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size in pixels of prompts without a size: one side, or HEIGHTxWIDTH. By default the size of "
            "the rollouts.",
            metavar="SIZE",
        ),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames per second of videos; default 16, or fewer so that a short video lasts a second.",
        ),
    ] = None,
    force: options.Force = False,
    overrides: options.Set = None,
    preset: options.Preset = None,
    accept: options.AcceptBase = None,
    micro_batch: options.MicroBatch = None,
    processes: options.Processes = 1,
) -> None:
    """Draw images or videos from a run or from a base model.

    Without --prompt or --prompts, it uses held-out prompts of the run. One row of grid.png is one prompt. A video
    is written as 00.mp4 with all its frames in 00.png; one row of grid.png is then one video.

    Examples:

        dgpo sample runs/quickstart -p "a photo of a red circle"

        dgpo sample runs/quickstart --model base --output before

        dgpo sample runs/edits -p "make it snow" --media street.png
    """
    from dgpo_cli.opening import note, working_on
    from dgpo_core.api.calls import sides_of_text
    from dgpo_core.api.output import check_directory
    from dgpo_core.data.prompts import load_file, typed
    from dgpo_core.errors import UserError

    if prompts and file:
        raise UserError("give --prompt or --prompts, not both")
    if not prompts and (negative is not None or images):
        option, key = ("--media", "media") if images else ("--negative", "negative_prompt")
        raise UserError(f"{option} belongs to --prompt; prompts of a file have their own, by the key `{key}`")
    # Before the model is loaded, which is slow.
    sides = sides_of_text(size)
    chosen = load_file(file) if file else typed(prompts or (), negative, images or ())
    check_directory(output, force=force, target=target)
    with working_on(
        context, target, model=model, checkpoint=checkpoint, overrides=overrides, preset=preset, accept=accept,
        processes=processes,
    ) as opened:  # fmt: skip
        from dgpo_core.api.samples import draw

        with working("drawing", shown=opened.processes.main) as work:
            samples = draw(
                opened, chosen, count=count, seed=seed, steps=steps, guidance=guidance, sides=sides,
                micro_batch=micro_batch, limit=limit, look=bool(file or images), fps=fps, on_message=note,
                on_progress=work.count,
            )  # fmt: skip
    if opened.processes.main:
        with working(f"writing {output}"):
            samples.write(output, fps=fps)
        kind = "video" if samples.video else "image"
        typer.echo(f"{len(samples)} {kind}{'' if len(samples) == 1 else 's'} of the {samples.label}: {output}/grid.png")
