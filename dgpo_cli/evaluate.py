"""`dgpo evaluate`: score a run or a base model on prompts, per task, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli import options

if TYPE_CHECKING:
    from dgpo_core.api.evaluating import EvaluationResult

__all__ = ["evaluate"]


def evaluate(
    context: typer.Context,
    target: options.TargetPath,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A .txt, .jsonl or .json file; by default the run's held-out prompts."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="A benchmark (`dgpo plugins list --kind suite`) with its own prompts, rewards and aggregation; may be "
            "repeated.",
            metavar="NAME",
        ),
    ] = None,
    suite_option: Annotated[
        list[str] | None,
        typer.Option("--suite-option", help="An option of a suite; may be repeated.", metavar="NAME.KEY=VALUE"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", min=1, help="Samples of each prompt.")] = None,
    model: options.ModelName = None,
    checkpoint: options.Checkpoint = "newest",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise; by default the seed of the run's evaluations.")
    ] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write every sample's score and diagnostics (.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print records instead of a table.")] = False,
    overrides: options.Set = None,
    preset: options.Preset = None,
    accept: options.AcceptBase = None,
    micro_batch: options.MicroBatch = None,
    processes: options.Processes = 1,
) -> None:
    """Score a run or a base model on prompts, or with benchmarks.

    Intervals are 95 % bootstrap intervals over prompts; the mean is the unweighted mean of the tasks. With --suite, the
    scores are those of the benchmark, and those of a run are kept in its directory for `dgpo compare`.

    Examples:

        dgpo evaluate runs/quickstart

        dgpo evaluate runs/quickstart --model base

        dgpo evaluate examples/sd35-pickscore.yaml --preset 24gb

        dgpo evaluate run.yaml --prompts drawbench.txt --samples 4 --json

        dgpo evaluate runs/quickstart --suite geneval --suite-option geneval.detector=mask2former
    """
    from dgpo_cli.opening import note, working_on
    from dgpo_core.api.output import check_file

    if output is not None:
        check_file(output)
    from dgpo_core.data.prompts import load_file

    chosen = load_file(prompts) if prompts else []  # before the model is loaded, which is slow
    if suite or suite_option:
        from dgpo_cli.suites import SuiteJob, opened_suites

        if prompts is not None:
            raise typer.BadParameter("a suite has its own prompts", param_hint="--prompts")
        suites = opened_suites(suite or (), suite_option or (), limit)
        job = SuiteJob(suites, samples, seed, steps, guidance, micro_batch, output, as_json)
        with working_on(
            context, target, model=model, checkpoint=checkpoint, overrides=overrides, preset=preset, accept=accept,
            processes=processes,
        ) as opened:  # fmt: skip
            results = job.run(opened)
        job.report(opened, results)
        return
    with working_on(
        context, target, model=model, checkpoint=checkpoint, overrides=overrides, preset=preset, accept=accept,
        processes=processes,
    ) as opened:  # fmt: skip
        from dgpo_cli.console import bar
        from dgpo_core.api import evaluating

        with bar("evaluate", shown=opened.processes.main) as on_progress:
            result = evaluating.evaluate(
                opened, chosen, limit=limit, samples=samples, seed=seed, steps=steps, guidance=guidance,
                micro_batch=micro_batch, on_message=note, on_progress=on_progress,
            )  # fmt: skip
    if opened.processes.main:
        _show(result, as_json=as_json, output=output)


def _show(result: EvaluationResult, *, as_json: bool, output: Path | None) -> None:
    """Write and print the records."""
    import json

    from dgpo_core.system.files import write_text

    records = [record.model_dump(mode="json") for record in result.records]
    if output is not None:
        write_text(
            output, json.dumps({"target": result.label, "records": records, "samples": result.samples}, indent=1)
        )
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    from rich.console import Console

    from dgpo_cli.console import print_evaluation

    typer.echo(result.label)
    print_evaluation(Console(), result.records)
    count = len(result.prompts)
    members = "1 sample" if result.members == 1 else f"{result.members} samples"
    typer.echo(f"{count} {'prompt' if count == 1 else 'prompts'} x {members}")
    for record in result.records:
        if record.missing:
            typer.echo(f"{record.reward}: {record.missing} of {len(result.samples)} samples could not be scored")
