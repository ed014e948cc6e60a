"""`dgpo export`: a run's weights in the format that the ecosystem loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")] = Path("adapter"),
    view: Annotated[str, typer.Option(help="policy, old (fast EMA) or slow (slow EMA).")] = "slow",
    checkpoint: Annotated[str, typer.Option(help="newest, best, or an iteration.")] = "newest",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Write a run's adapter for use without dgpo.

    After full fine-tuning these are all weights. For SD3 and SD3.5: pipe.load_lora_weights("adapter").

    Example:

        dgpo export runs/quickstart --output adapter
    """
    import json

    from dgpo_cli.output import check_directory
    from dgpo_cli.target import open_target
    from dgpo_core.errors import UserError

    if view == "base":
        raise UserError("--view base: the base model is the checkpoint that the run started from; nothing to export")
    if run.is_file():
        raise UserError(f"{run}: is a run file, which has only its base model; name a run directory")
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run directory")
    check_directory(output, force=force, target=run)
    opened = open_target(run, view=view, checkpoint=checkpoint)
    from dgpo_core.files import new_directory

    with new_directory(output) as aside:
        with opened.engine.policy.view(opened.view):
            opened.engine.backbone.save_adapter(aside)
        backbone = opened.engine.config.backbone
        origin = {"base": backbone.checkpoint, "revision": backbone.revision, "view": opened.view}
        (aside / "dgpo.json").write_text(json.dumps({**origin, "iteration": opened.iteration}, indent=1) + "\n")
    typer.echo(f"{opened.label}: {output}")
