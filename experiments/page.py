"""Write the Markdown page of an experiment from its record."""

from __future__ import annotations

from pathlib import Path

from dgpo_lab.ablation import tables, words
from experiments.catalog import EXPERIMENTS, HERE, SECONDS, Experiment
from experiments.decisions import Decisions
from experiments.factors import Factors
from experiments.findings import Findings
from experiments.record import load
from experiments.seconds import page as seconds

__all__ = ["write_index", "write_page"]


def write_page(experiment: Experiment, directory: Path) -> Path:
    """Write EN.md next to the directory EN, which contains the record and images."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    record = load(directory / experiment.key / "record.json")
    environment = Environment(
        loader=FileSystemLoader(HERE / "pages"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": words.interval, "signed": words.signed, "p": words.p_value}
    header, body = tables.rows(record.results)
    text = environment.get_template(f"{experiment.key}.md.jinja").render(
        experiment=experiment,
        record=record,
        facts=record.facts,
        results=record.results,
        say=Findings(record),
        decided=Decisions(record.results),
        factors=Factors(record.results, record.targets, record.passes),
        header=header,
        body=body,
        seeds=sorted({trace.seed for trace in record.results.traces}),
        sheet=(directory / experiment.key / "samples.png").is_file(),
    )
    path = directory / f"{experiment.key}.md"
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path


def write_index(directory: Path) -> Path:
    """Write README.md, a table of the experiments that have a record, with their headlines."""
    lines = [
        "# Experiments",
        "",
        "The paper's experiments and its open questions on the miniature, one command each. The command generates",
        "numbers, figures and all sentences with numbers; intervals are 95 % intervals.",
        "",
        "| experiment | question | headline |",
        "|---|---|---|",
    ]
    for experiment in EXPERIMENTS.values():
        if (directory / experiment.key / "record.json").is_file():
            record = load(directory / experiment.key / "record.json")
            link, headline = f"[{experiment.key.upper()}]({experiment.key}.md)", words.headline(record.results)
            lines.append(f"| {link} | {experiment.title} | {headline} |")
    if (directory / SECONDS / "record.json").is_file():
        lines.append(f"| [{SECONDS}]({SECONDS}.md) | {seconds.TITLE} | {seconds.headline(directory)} |")
    lines += ["", (HERE / "pages" / "index-tail.md").read_text(encoding="utf-8").strip()]
    path = directory / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
