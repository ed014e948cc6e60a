"""`python -m benchmarks roofline`: its arguments, and what it prints."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from benchmarks import roofline
from dgpo_core.errors import UserError
from dgpo_lab.planning.copies import Copy
from dgpo_lab.planning.kernels import Kernel
from dgpo_lab.planning.meter import Counted
from dgpo_lab.planning.roofline import Pass, Roofline

PRODUCT = Kernel("mm", "gemm", "bfloat16", 671.5e12, 10)
"""A second on an H200."""
SUM = Kernel("add", "elementwise", "float32", 0, int(3.87e12))
"""Another second."""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that were measured; a measurement takes no time."""
    given: list[Any] = []
    copies = Counter({Copy("to host", "item", "a.b f", blocking=True): 3})
    copies[Copy("to device", "_to_copy", "c", blocking=False)] = 9
    counted = Counted(1, 40, Counter({PRODUCT: 2, SUM: 4}), copies)
    found = Roofline([Pass("a pass", 24, counted, 2)], {"rollout": 3.0 * 2**30})

    def measure(name: str, settings: Any) -> Roofline:
        given.append((name, list(settings)))
        return found

    monkeypatch.setattr(roofline, "measure", measure)
    return given


def test_what_is_printed(settings: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    roofline.run(["sd3.5-m, 512"], longest=1, overrides=["rollout.steps=3"])
    assert settings == [("sd3.5-m, 512", ["rollout.steps=3"])]
    title, head, row, longest, blocking, peaks, _ = capsys.readouterr().out.split("\n")[:7]
    assert title == "sd3.5-m, 512, on h200"
    columns = head.split()
    assert columns[:4] == ["pass", "samples", "kernels", "GB"]
    assert row.split() == ["a", "pass", "24", "3", "7740.0", "671.50", "3000.0", "1000.0", "0.28", "20", "1.5"]
    assert longest.split() == ["add", "2.0", "7740.00", "GB", "2000.00", "ms"]
    assert blocking.strip() == "blocking,   3 in all: a.b f: item to host"
    assert peaks == "peak GiB: rollout 3.0"


def test_as_json(settings: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    roofline.run(card="b200", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["card"], list(found["cases"])) == ("b200", list(roofline.CASES))
    (one,) = found["cases"]["sd3.5-m, 512"]["passes"]
    assert one["kernels"] == 3
    assert one["blocking"] == 1.5
    assert one["busy_ms"] == pytest.approx(1000 * 989 / 2250)
    assert one["ideal_ms"] == pytest.approx(1000 * 989 / 2250 + 2000 * 4.8 / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": ["sd3.5-m,512"]}, "there is no case 'sd3.5-m,512'; did you mean sd3.5-m, 512?"),
        ({"card": "h20"}, "--card: unknown GPU 'h20'; did you mean h200?"),
        ({"write": True, "card": "b200"}, "--write: the page has all cases as they are, on h200"),
    ],
)
def test_mistakes(settings: list[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        roofline.run(**arguments)
    assert str(raised.value).startswith(message)
    assert not settings
