"""`dgpo decoders`: measure what a tiny decoder changes in rewards."""

from __future__ import annotations

from typing import Annotated

import typer

from dgpo_cli import options
from dgpo_cli.working import working

__all__ = ["decoders"]


def decoders(
    context: typer.Context,
    target: options.TargetPath,
    count: Annotated[int, typer.Option("--count", "-n", min=2, help="Samples of each prompt.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 8,
    model: options.ModelName = None,
    checkpoint: options.Checkpoint = "newest",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    overrides: options.Set = None,
    preset: options.Preset = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the same latents decoded by the full decoder and by the tiny decoder of rollouts.

    Advantages compare the samples of a prompt, so an equal shift of all scores is harmless; the correlation within
    groups, and how many samples stay on the same side of their group's mean, tell whether training follows the same
    signal.

    Examples:

        dgpo decoders run.yaml --set backbone.options.tiny_decoder=taesd3/

        dgpo decoders runs/sd35 --model ema --limit 16
    """
    import json

    from dgpo_cli.opening import working_on
    from dgpo_core.errors import UserError

    with working_on(
        context, target, model=model, checkpoint=checkpoint, overrides=overrides, preset=preset, accept=None,
        processes=1,
    ) as opened:  # fmt: skip
        if opened.engine.config.backbone.options.get("tiny_decoder") is None:
            raise UserError(
                "backbone.options.tiny_decoder: not set, so there is nothing to compare; set it in the run file, or "
                "with --set backbone.options.tiny_decoder=PATH"
            )
        from dgpo_lab.decoders import compare, lines

        prompts = (opened.prompts("heldout") or opened.prompts("train"))[:limit]
        with working("decoding and scoring"):
            found = compare(opened, prompts, count=count, seed=seed)
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))
