"""From the record to docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks.floor import CARD
from benchmarks.overhead import ENGINE, UPDATE
from benchmarks.peers.comparison import LEVEL
from benchmarks.peers.turns import SIDES
from benchmarks.scaling import PHASES, SERIES
from dgpo_lab.planning.cards import BANDWIDTH, CARDS, LAUNCH, REACHED

__all__ = ["DOCS", "write_page", "write_roofline"]

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def write_page(record: dict[str, Any], directory: Path) -> Path:
    """Write performance.md. Parts that were not measured say so."""
    measured = {part: entry["measured"] for part, entry in record.items()}
    floor = measured.get("floor", [])
    bound = [case["seconds"][phase] / case["traffic"][phase] for case in floor for phase in case["seconds"]]
    spent = measured.get("overhead", {})
    total = sum(spent.values())
    return _write(
        directory / "performance.md", "page.md.jinja",
        card=CARDS[CARD],
        floor=floor,
        least=f"{min(bound, default=0):.0f}",
        most=f"{max(bound, default=0):,.0f}",
        gpu=measured.get("gpu"),
        overhead=sorted(((label, seconds / total) for label, seconds in spent.items()), key=lambda row: -row[1]),
        added=(spent[ENGINE] + spent[UPDATE]) / total if spent else 0.0,
        overlap=measured.get("overlap"),
        processes=measured.get("processes"),
        peers=measured.get("peers"),
        sides=SIDES,
        level=LEVEL,
        machines={part: _words(entry["machine"]) for part, entry in record.items()},
        series=[_series(one, measured["scaling"][one.name]) for one in SERIES] if "scaling" in measured else [],
        choices=measured.get("choices"),
        history=yaml.safe_load((HERE / "history.yaml").read_text(encoding="utf-8")),
    )  # fmt: skip


def write_roofline(record: dict[str, Any], directory: Path) -> Path:
    """Write roofline.md from the measured roofline."""
    entry = record["roofline"]
    return _write(
        directory / "roofline.md", "roofline.md.jinja",
        cases=entry["measured"], torch=entry["machine"]["torch"], date=entry["machine"]["date"], card=CARDS[CARD],
        ceiling=CARDS[CARD].ceiling / 1e12, launch=LAUNCH * 1e6, bandwidth=CARDS[CARD].bandwidth * BANDWIDTH,
        rates={kind: CARDS[CARD].tflops * share for kind, share in REACHED.items()},
    )  # fmt: skip


def _write(path: Path, template: str, **values: Any) -> Path:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(template).render(**values)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path


def _words(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, torch {machine['torch']}, {machine['date']}"


def _series(series: Any, points: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = [point["number"] for point in points]
    return {
        "title": series.title,
        "numbers": numbers,
        "ideal": [f"{n / numbers[0]:.2f}" for n in numbers] if series.samples else None,
        "rows": {
            phase.replace("_", " "): [
                f"{point['seconds'][phase] / points[0]['seconds'][phase]:.2f}" for point in points
            ]
            for phase in PHASES
        },
    }
