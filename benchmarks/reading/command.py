"""Compare the OCR engines with their real models, and write docs/ocr-engines.md.

python -m benchmarks ocr-engines --python paddle/bin/python
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.page import DOCS
from benchmarks.reading.comparing import Reading, Row, engines, packages_of, rows
from benchmarks.reading.pictures import EXPECTED

__all__ = ["page", "run"]

MODELS = {"rapidocr": "PP-OCRv6 small, onnxruntime", "paddleocr": "PP-OCRv4 mobile, PaddlePaddle"}
HEAD = Path(__file__).with_name("head.md")
KINDS = {
    "sign": "signs",
    "photograph": "texts in photographs",
    "blank": "blank images",
    "empty": "photographs without text",
}
LONGEST = 60


def run(
    python: Annotated[str, typer.Option(help="An interpreter with PaddleOCR, rapidocr-paddle and the photographs.")],
    output: Annotated[Path, typer.Option(help="Directory of ocr-engines.md.")] = DOCS,
) -> None:
    """Let RapidOCR and PaddleOCR read the same signs and photographs, and write docs/ocr-engines.md."""
    packages = packages_of(python)
    with tempfile.TemporaryDirectory() as directory, engines(python, Path(directory)) as made:
        found = rows(made, packages)
    path = output / "ocr-engines.md"
    path.write_text(page(found), encoding="utf-8")
    typer.echo(str(path))


def page(found: Sequence[Row]) -> str:
    """Return the page: counts, and each text that an engine did not read."""
    return "\n".join([*_head(), *_counts(found), "", *_differences(found)]) + "\n"


def _head() -> Iterator[str]:
    yield HEAD.read_text(encoding="utf-8")


def _counts(found: Sequence[Row]) -> Iterator[str]:
    labels = list(found[0].readings)
    yield "| | " + " | ".join(f"`{label}` ({MODELS[label]})" for label in labels) + " | expected |"
    yield "|---" * (len(labels) + 2) + "|"
    for kind, name in KINDS.items():
        of_kind = [row for row in found if row.group == kind]
        cells = [f"{sum(row.right(label) for row in of_kind)} of {len(of_kind)}" for label in labels]
        yield f"| {name} | " + " | ".join(cells) + f" | {EXPECTED[kind]} |"


def _differences(found: Sequence[Row]) -> Iterator[str]:
    labels = list(found[0].readings)
    yield "Every picture that an engine reads differently from its label:"
    yield ""
    yield "| picture | label | " + " | ".join(f"`{label}`" for label in labels) + " |"
    yield "|---" * (len(labels) + 2) + "|"
    for row in found:
        if not all(row.right(label) for label in labels):
            cells = [_shown(row.readings[label], right=row.right(label)) for label in labels]
            asked = "no text" if row.asked is None else f"`{row.asked}`"
            yield f"| {row.picture} | {asked} | " + " | ".join(cells) + " |"


def _shown(reading: Reading, *, right: bool) -> str:
    if right:
        return "read"
    if reading.value is None:
        return f"missing: {reading.text}"
    text = reading.text.replace("|", "\\|").replace("`", "'")
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return f"{reading.value:.2f}: " + (f"`{shown}`" if shown else "nothing")
