"""Write the Markdown page of an experiment from its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_lab.ablation import tables, words
from experiments import agreement
from experiments.catalog import EXPERIMENTS, HERE, SECONDS, SIGNAL, Experiment
from experiments.decisions import Decisions
from experiments.factors import Factors
from experiments.findings import Findings
from experiments.hacking import Hacking
from experiments.record import Record, load
from experiments.rendering import write
from experiments.seconds import page as seconds
from experiments.signal import page as signal
from experiments.summary import write_summary

__all__ = ["write_index", "write_page"]


@dataclass(frozen=True)
class Beside:
    """What a template needs of another experiment's record."""

    say: Findings
    decided: Decisions
    seeds: Sequence[int]


def seeds_of(record: Record) -> Sequence[int]:
    """Return the seeds of a record, in ascending order."""
    return sorted({trace.seed for trace in record.results.traces})


def write_page(experiment: Experiment, directory: Path) -> Path:
    """Write EN.md next to the directory EN, which contains the record and images."""
    record = load(directory / experiment.key / "record.json")
    more: dict[str, Any] = {}
    if experiment.beside is not None:
        other = load(directory / experiment.beside / "record.json")
        more = {"beside": Beside(Findings(other), Decisions(other.results), seeds_of(other)), "agreement": agreement}
    header, body = tables.rows(record.results)
    return write(
        directory / f"{experiment.key}.md",
        experiment=experiment,
        record=record,
        facts=record.facts,
        results=record.results,
        say=Findings(record),
        decided=Decisions(record.results),
        hacking=Hacking(record.results),
        factors=Factors(record.results, record.targets, record.passes),
        header=header,
        body=body,
        seeds=seeds_of(record),
        sheet=(directory / experiment.key / "samples.png").is_file(),
        **more,
    )


def write_index(directory: Path) -> Path:
    """Write README.md, a table of the experiments that have a record, with their headlines, and the summary."""
    found = write_summary(directory).is_file()
    lines = [
        "# Experiments",
        "",
        "The paper's experiments and its open questions on the miniature, one command each. The command generates",
        "numbers, figures and all sentences with numbers; intervals are 95 % intervals.",
        "",
        *(["**In two minutes: [what to use, what not, and how sure](summary.md).**", ""] if found else []),
        "| experiment | question | headline |",
        "|---|---|---|",
    ]
    for experiment in EXPERIMENTS.values():
        if (directory / experiment.key / "record.json").is_file():
            record = load(directory / experiment.key / "record.json")
            link, headline = f"[{experiment.key.upper()}]({experiment.key}.md)", words.headline(record.results)
            lines.append(f"| {link} | {experiment.title} | {headline} |")
    for name, page in {SECONDS: seconds, SIGNAL: signal}.items():
        if (directory / name / "record.json").is_file():
            lines.append(f"| [{name}]({name}.md) | {page.TITLE} | {page.headline(directory)} |")
    lines += ["", (HERE / "pages" / "index-tail.md").read_text(encoding="utf-8").strip()]
    path = directory / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
