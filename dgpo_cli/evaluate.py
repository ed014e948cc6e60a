"""`dgpo evaluate`: score a run or a base model on prompts, per task, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.options import AcceptBase

__all__ = ["evaluate"]


def evaluate(
    target: Annotated[Path, typer.Argument(help="A run directory, or a run file (its base model).", metavar="RUN")],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A .txt, .jsonl or .json file; by default the run's held-out prompts."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", min=1, help="Samples of each prompt.")] = None,
    view: Annotated[
        str | None, typer.Option(help="base, policy, old (fast EMA) or slow (slow EMA, the default).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="newest, best, or an iteration.")] = "newest",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise; by default that of the run's evaluations.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; by default as configured.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance scale; by default as configured.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write every sample's score and diagnostics (.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print records instead of a table.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of a run file; of a run directory where its base model is."),
    ] = None,
    accept: AcceptBase = None,
) -> None:
    """Score a run or a base model on prompts.

    Intervals are 95 % bootstrap intervals over prompts; the mean is the unweighted mean of the tasks.

    Examples:

        dgpo evaluate runs/quickstart

        dgpo evaluate runs/quickstart --view base

        dgpo evaluate run.yaml --prompts drawbench.txt --samples 4 --json
    """
    import json

    from dgpo_cli.output import check_file
    from dgpo_cli.target import open_target
    from dgpo_core.errors import UserError

    if output is not None:
        check_file(output)
    from dgpo_core.data.notes import longer_than_read, notes
    from dgpo_core.data.prompts import load_file, some_of

    chosen = load_file(prompts) if prompts else []  # before the model is loaded, which takes longer
    opened = open_target(target, view=view, checkpoint=checkpoint, overrides=overrides or (), accept=accept or ())
    engine = opened.engine
    from dgpo_core.draws import Draws
    from dgpo_core.system.files import write_text
    from dgpo_core.training.evaluation import Evaluator, Finer
    from dgpo_core.training.reward_building import evaluation_scorer

    section = engine.config.evaluation
    members = samples or section.samples_per_prompt
    chosen = chosen or opened.prompts("heldout")
    if not chosen:
        raise UserError(f"{target}: it has no held-out prompts; name a file with --prompts")
    chosen = some_of(chosen, limit) if limit else chosen
    engine.check_prompts(chosen)
    chosen = engine.sized(chosen)
    if guidance is not None:
        engine.check_guidance("--guidance", guidance)
    longer = longer_than_read(chosen, engine.backbone)
    for note in (notes(chosen) if prompts else []) + ([longer] if longer else []):
        typer.echo(f"note: {note}", err=True)
    scorer = evaluation_scorer(engine, chosen, members)
    try:
        evaluator = Evaluator(
            roller=engine.evaluation_roller(steps=steps, guidance=guidance),
            scorer=scorer,
            prompts=chosen,
            members=members,
            draws=Draws(seed if seed is not None else engine.config.run.seed).at("evaluation"),
            finer=Finer.of(engine, guidance),
        )
        result = evaluator.evaluate(opened.view, opened.iteration)
    finally:
        engine.close()
    records = [record.model_dump(mode="json") for record in result.records]
    if output is not None:
        write_text(
            output, json.dumps({"target": opened.label, "records": records, "samples": result.samples}, indent=1)
        )
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    from rich.console import Console

    from dgpo_cli.console import print_evaluation

    typer.echo(opened.label)
    print_evaluation(Console(), result.records)
    typer.echo(f"{len(chosen)} prompts x {members} {'sample' if members == 1 else 'samples'}")
    for record in result.records:
        if record.missing:
            typer.echo(f"{record.reward}: {record.missing} of {len(result.samples)} samples could not be scored")
