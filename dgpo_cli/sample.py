"""`dgpo sample`: images or videos from a run or from a base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli import options
from dgpo_schemas.base import LONGEST_SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_cli.target import Target
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.rollout import RolloutSampler
    from dgpo_core.types import Prompt

__all__ = ["sample"]


def sample(
    context: typer.Context,
    target: options.TargetPath,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="A text that guidance leads away from, for every --prompt.", metavar="TEXT")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--media", help="An image or video to draw every --prompt from; may be repeated.", metavar="PATH"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="A .txt, .jsonl or .json file of prompts.")] = None,
    output: options.Output = Path("samples"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples of each prompt.")] = 4,
    model: options.ModelName = None,
    checkpoint: options.Checkpoint = "newest",
    seed: Annotated[int, typer.Option(help="Seed of the noise: the same seed gives every view the same noise.")] = 0,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
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
    force: options.Force = False,
    overrides: options.Set = None,
    accept: options.AcceptBase = None,
    micro_batch: options.MicroBatch = None,
    processes: options.Processes = 1,
) -> None:
    """Draw images or videos from a run or from a base model.

    Without prompts it takes held-out ones of the run. One row of grid.png is one prompt. A video is written as 00.mp4
    with all its frames in 00.png; one row of grid.png is then one video.

    Examples:

        dgpo sample runs/quickstart -p "a photo of a red circle"

        dgpo sample runs/quickstart --model base --output before

        dgpo sample runs/edits -p "make it snow" --media street.png --negative "people"
    """
    from dgpo_cli.output import check_directory
    from dgpo_cli.target import working_on
    from dgpo_core.errors import UserError

    if prompts and file:
        raise UserError("give --prompt or --prompts, not both")
    if not prompts and (negative is not None or images):
        option, key = ("--media", "media") if images else ("--negative", "negative_prompt")
        raise UserError(f"{option} belongs to --prompt; prompts of a file have their own, by the key `{key}`")
    from dgpo_core.data.notes import longer_than_read, notes, unheard
    from dgpo_core.data.prompts import load_file, typed

    # Before the model is loaded, which takes longer.
    sides = _sides(size)
    chosen = load_file(file) if file else typed(prompts or (), negative, images or ())
    check_directory(output, force=force, target=target)
    with working_on(
        context, target, model=model, checkpoint=checkpoint, overrides=overrides, accept=accept,
        micro_batch=micro_batch, processes=processes,
    ) as opened:  # fmt: skip
        engine = opened.engine
        chosen = chosen or (opened.prompts("heldout") or opened.prompts("train"))[:limit]
        chosen = opened.checked(chosen, guidance, sides)
        scale = engine.config.rollout.guidance if guidance is None else guidance
        opened.note(notes(chosen) if file or images else ())
        opened.note([
            longer_than_read(chosen, engine.backbone),
            unheard(chosen, engine.backbone.supports_guidance and scale != 1),
            _check_video(engine, fps),
        ])  # fmt: skip
        media = _drawn(opened, engine.rollout_sampler(steps=steps, guidance=guidance), chosen, count, seed)
    if opened.processes.main:
        from dgpo_core.media.images import write_images

        write_images(output, media, [prompt for prompt in chosen for _ in range(count)], columns=count, fps=fps)
        what = "video" if engine.backbone.media == "video" else "image"
        typer.echo(f"{len(media)} {what}{'' if len(media) == 1 else 's'} of the {opened.label}: {output}/grid.png")


def _check_video(engine: Engine, fps: int | None) -> str | None:
    """What keeps videos from being written as such, before the work, which may be long; no reason not to do it."""
    from dgpo_core.errors import UserError
    from dgpo_core.media import clips

    if engine.backbone.media == "video":
        reason = clips.why_not()
        return None if reason is None else f"videos are written as film strips only; {reason}"
    if fps is not None:
        raise UserError(f"--fps: the backbone {engine.config.backbone.use} makes images, which have no frame rate")
    return None


def _drawn(
    opened: Target, rollout_sampler: RolloutSampler, prompts: Sequence[Prompt], count: int, seed: int
) -> list[Tensor]:
    """The media of all samples in order, on the CPU, in the main process; none in others."""
    from dgpo_core.distributed.partitioning import exchange_tensors
    from dgpo_core.draws import Draws
    from dgpo_core.training.memory import decoded_media

    split_samples, processes = opened.share(rollout_sampler, prompts, count), opened.processes
    held: dict[int, Tensor] = {}
    with processes.together(rollout_sampler.policy.finish):
        own = split_samples[processes.rank]
        for one in rollout_sampler.sample_groups(prompts, count, Draws(seed).at("sample"), opened.model, samples=own):
            held |= zip(one.samples, decoded_media(opened.engine.backbone, one).cpu(), strict=True)
    holders = {sample: rank for rank, share in enumerate(split_samples) for sample in share}
    return list(exchange_tensors(processes, held, holders, dict.fromkeys(holders, 0)).values())


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
