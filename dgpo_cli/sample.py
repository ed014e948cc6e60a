"""`dgpo sample`: pictures or videos from a run or from a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.options import AcceptBase
from dgpo_schemas.base import LONGEST_SIDE

__all__ = ["sample"]


def sample(
    target: Annotated[Path, typer.Argument(help="A run directory, or a run file (its base model).", metavar="RUN")],
    prompts: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="A text that guidance leads away from, for every --prompt.", metavar="TEXT")
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            "--media", help="A picture or video to draw every --prompt from; may be repeated.", metavar="PATH"
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="A .txt, .jsonl or .json file of prompts.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the pictures.")] = Path("samples"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples of each prompt.")] = 4,
    view: Annotated[
        str | None, typer.Option(help="base, policy, old (fast EMA) or slow (slow EMA, the default).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="newest, best, or an iteration.")] = "newest",
    seed: Annotated[int, typer.Option(help="Seed of the noise: the same seed gives every view the same noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; by default those of the rollouts.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, help="Guidance scale; by default that of the rollouts.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many held-out prompts, when none are given.")] = 8,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size in pixels of prompts that have none of their own: a side, or HEIGHTxWIDTH. By default that of "
            "the rollouts.",
            metavar="SIZE",
        ),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames a second of videos; by default 16, or fewer of a short video, so that it lasts a second.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of a run file; of a run directory where its base model is."),
    ] = None,
    accept: AcceptBase = None,
) -> None:
    """Draw pictures or videos from a run or from a base model.

    Without prompts it takes held-out ones of the run. One row of grid.png is one prompt. A video is written as 00.mp4
    with all its frames in 00.png; one row of grid.png is then one video.

    Examples:

        dgpo sample runs/quickstart -p "a photo of a red circle"

        dgpo sample runs/quickstart --view base --output before

        dgpo sample runs/edits -p "make it snow" --media street.png --negative "people"
    """
    from dgpo_cli.output import check_directory
    from dgpo_cli.target import open_target
    from dgpo_core.errors import UserError

    if prompts and file:
        raise UserError("give --prompt or --prompts, not both")
    if not prompts and (negative is not None or pictures):
        option, key = ("--media", "media") if pictures else ("--negative", "negative_prompt")
        raise UserError(f"{option} belongs to --prompt; prompts of a file have their own, by the key `{key}`")
    from dgpo_core.data.notes import longer_than_read, notes, unheard
    from dgpo_core.data.prompts import load_file, typed

    # Before the model is loaded, which takes longer.
    sides = _sides(size)
    chosen = typed(prompts or (), negative, pictures or ())
    if file:
        chosen = load_file(file)
    check_directory(output, force=force, target=target)
    opened = open_target(target, view=view, checkpoint=checkpoint, overrides=overrides or (), accept=accept or ())
    engine = opened.engine
    from dgpo_core.draws import Draws
    from dgpo_core.flow.sizes import check_sizes
    from dgpo_core.media import clips
    from dgpo_core.media.pictures import write_pictures
    from dgpo_core.training.memory import decoded_media

    if not chosen:
        chosen = (opened.prompts("heldout") or opened.prompts("train"))[:limit]
    engine.check_prompts(chosen)
    if sides is not None:
        check_sizes(engine.backbone, [], sides, "--size")
        chosen = [prompt.sized(sides) for prompt in chosen]
    chosen = engine.sized(chosen)
    scale = engine.config.rollout.guidance if guidance is None else guidance
    told = [longer_than_read(chosen, engine.backbone), unheard(chosen, engine.backbone.guidable and scale != 1)]
    for note in [*(notes(chosen) if file or pictures else ()), *filter(None, told)]:
        typer.echo(f"note: {note}", err=True)
    video = engine.backbone.media == "video"
    if fps is not None and not video:
        raise UserError(f"--fps: the backbone {engine.config.backbone.use} makes images, which have no frame rate")
    reason = clips.why_not() if video else None
    if reason is not None:  # before the work, which may be long, but no reason not to do it
        typer.echo(f"note: videos are written as film strips only; {reason}", err=True)
    if guidance is not None:
        engine.check_guidance("--guidance", guidance)
    roller = engine.roller(steps=steps, guidance=guidance)
    media = [
        one
        for r in roller.roll_out(chosen, count, Draws(seed).at("sample"), opened.view)
        for one in decoded_media(engine.backbone, r).cpu()
    ]
    repeated = [prompt for prompt in chosen for _ in range(count)]
    write_pictures(output, media, repeated, columns=count, fps=fps)
    what = "video" if video else "picture"
    typer.echo(f"{len(media)} {what}{'' if len(media) == 1 else 's'} of the {opened.label}: {output}/grid.png")


def _sides(text: str | None) -> tuple[int, int] | None:
    """(height, width) of what was typed."""
    from dgpo_core.errors import UserError

    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and 0 < len(side) <= 5 for side in sides):
        raise UserError(f"--size: {text!r} is no size in pixels: give a side, such as 768, or HEIGHTxWIDTH, 768x1024")
    height, width = int(sides[0]), int(sides[-1])
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        raise UserError(f"--size: {text}: a side has from 1 to {LONGEST_SIDE} pixels")
    return height, width
