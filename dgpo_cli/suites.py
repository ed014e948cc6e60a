"""`dgpo evaluate --suite`: evaluate a model with benchmarks, and print their tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from dgpo_cli.console import bar
from dgpo_cli.opening import note
from dgpo_core.api.suites import OpenedSuite, SuiteResult, evaluate_suite, open_suite
from dgpo_core.api.target import Target
from dgpo_core.config.overrides import apply_overrides
from dgpo_core.errors import UserError
from dgpo_core.system.files import why_not_writable, write_text
from dgpo_core.system.units import number
from dgpo_schemas.base import UseBlock
from dgpo_schemas.loading import Document
from dgpo_schemas.suites import JudgeRecord, SuiteRecord

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["SUITES", "SuiteJob", "opened_suites", "print_suite", "show_suites", "suite_lines"]

SUITES = "suites"
"""Directory of a run with the records of its suites: ITERATION-MODEL-SUITE.json."""


def opened_suites(names: Sequence[str], options: Sequence[str], limit: int | None = None) -> list[OpenedSuite]:
    """Open suites by name, with the options NAME.KEY=VALUE. Raises UserError for wrong names, options or files."""
    from dgpo_core.plugins.registry import get_registry  # imported here because tests replace it

    registry = get_registry()
    known = dict.fromkeys(names)
    for name in known:
        registry.find("suite", name)
    given: dict[str, list[str]] = {name: [] for name in known}
    for option in options:
        place, equals, _ = option.partition("=")
        owner = next((name for name in known if place.startswith(f"{name}.")), None)
        if not equals or owner is None or not all(place.removeprefix(f"{owner}.").split(".")):
            raise UserError(
                f"--suite-option {option}: must be NAME.KEY=VALUE with the name of a suite that --suite gives"
                + (f" ({', '.join(known)}), such as {next(iter(known))}.file=prompts.jsonl" if known else "")
            )
        given[owner].append(option.removeprefix(f"{owner}."))
    return [_opened(name, given[name], limit, registry) for name in known]


def _opened(name: str, options: Sequence[str], limit: int | None, registry: Registry) -> OpenedSuite:
    document = Document(f"--suite {name}", {"use": name})
    document = apply_overrides(document, options, flag="--suite-option", under="options.")
    return open_suite(UseBlock.model_validate(document.data), registry, limit=limit)


@dataclass(frozen=True, slots=True)
class SuiteJob:
    """The suites to evaluate a model with, and the outputs to write; see the options of `dgpo evaluate`."""

    suites: Sequence[OpenedSuite]
    samples: int | None
    seed: int | None
    steps: int | None
    guidance: float | None
    micro_batch: int | None
    output: Path | None
    as_json: bool

    def run(self, target: Target) -> list[SuiteResult]:
        """Evaluate the target."""
        results = []
        for opened in self.suites:
            with bar(f"suite {opened.name}", shown=target.processes.main) as on_progress:
                results.append(
                    evaluate_suite(
                        target, opened, samples=self.samples, seed=self.seed, steps=self.steps, guidance=self.guidance,
                        micro_batch=self.micro_batch, on_message=note, on_progress=on_progress,
                    )
                )  # fmt: skip
        return results

    def report(self, target: Target, results: Sequence[SuiteResult]) -> None:
        """Write the records, also into the run directory, and print them; the main process only."""
        if target.processes.main:
            if target.run is not None:
                _keep(target.run, results)
            show_suites(target.label, results, as_json=self.as_json, output=self.output)


def _keep(run: Path, results: Sequence[SuiteResult]) -> None:
    """Write the records into the run directory, for `dgpo compare`."""
    directory = run / SUITES
    if (reason := why_not_writable(directory)) is not None:
        note(f"{directory}: cannot be written: {reason}; the records are not kept")
        return
    directory.mkdir(exist_ok=True)
    for result in results:
        record = result.record
        name = f"{record.iteration or 0:06d}-{record.model}-{record.suite}.json"
        write_text(directory / name, record.model_dump_json(indent=1) + "\n")


def show_suites(label: str, results: Sequence[SuiteResult], *, as_json: bool, output: Path | None) -> None:
    """Print the tables or records of suites, and write them with the scores of every sample."""
    records = [result.record.model_dump(mode="json") for result in results]
    if output is not None:
        samples = {result.record.suite: list(result.samples) for result in results}
        write_text(output, json.dumps({"target": label, "suites": records, "samples": samples}, indent=1))
    if as_json:
        typer.echo(json.dumps([_without_resamples(record) for record in records], indent=1))
        return
    typer.echo(label)
    for result in results:
        print_suite(Console(), result.record)


def _without_resamples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "resampled"}


def print_suite(console: Console, record: SuiteRecord) -> None:
    """Print the table of a suite and what its scores depend on."""
    table = Table()
    table.add_column(record.suite)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for place, (name, score) in enumerate(record.scores.items()):
        interval = "" if score.low is None or score.high is None else f"{number(score.low)} to {number(score.high)}"
        value = "-" if score.value is None else number(score.value)
        table.add_row(name, value, interval, style="bold" if place == 0 else None, end_section=place == 0)
    console.print(table)
    for line in suite_lines(record):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def suite_lines(record: SuiteRecord) -> Iterator[str]:
    """Yield the lines below the table: prompts, judges, missing samples, and what is not comparable."""
    members = "1 sample" if record.samples_per_prompt == 1 else f"{record.samples_per_prompt} samples"
    yield f"{record.prompts} prompts x {members}; suite of {record.distribution}; prompts {record.digest[:12]}"
    for label, judge in record.rewards.items():
        yield f"judge {label}: {_described(judge)}"
    total = record.prompts * record.samples_per_prompt
    for label, judge in record.rewards.items():
        if judge.missing:
            yield f"{label}: {judge.missing} of {total} samples could not be scored"
    for reason in record.not_comparable:
        yield f"not comparable with published scores: {reason}"


def _described(judge: JudgeRecord) -> str:
    chosen: dict[str, Any] = {
        key: value for key, value in judge.provenance.items() if isinstance(value, str | int | float)
    }
    for kind in ("detector", "reward"):  # what the reward is made of, such as that whose values `pairwise` compares
        inner = judge.options.get(kind)
        if isinstance(inner, Mapping):
            chosen[kind] = inner.get("use")
    return ", ".join([judge.use, *(f"{key} {value}" for key, value in chosen.items())])
