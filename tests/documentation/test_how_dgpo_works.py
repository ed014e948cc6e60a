"""The worked example of docs/how-dgpo-works.md, computed by the engine, by hand and by automatic differentiation."""

from __future__ import annotations

import contextlib
import io
import math
import re

import pytest
import torch

import dgpo_core.functional as F
from documentation.example import BETA, ERRORS, REFERENCE_ERRORS, REWARDS, advantages, preference, sigmoid
from documentation.links import ROOT
from documentation.pictures import FOLDER, pictures

PAGE = (ROOT / "docs" / "how-dgpo-works.md").read_text()


def numbers(line: str) -> list[float]:
    return [float(cell.replace("−", "-")) for cell in re.findall(r"(?<=\| )[+−]?\d+\.\d+(?= \|)", line)]


SAMPLES = [numbers(line) for line in PAGE.splitlines() if re.match(r"\| [ABCD] \|", line)]
START, NOW = (numbers(re.search(rf"^\| {name}.*$", PAGE, re.MULTILINE)[0]) for name in ("at the start", "now"))  # type: ignore[index]


def test_the_table_has_the_example() -> None:
    rewards, _, reference, errors, _, _ = zip(*SAMPLES, strict=True)
    assert (rewards, reference, errors) == (REWARDS, REFERENCE_ERRORS, ERRORS)


def test_the_weights_of_the_page_are_the_engines() -> None:
    rewards = torch.tensor([REWARDS], dtype=torch.float64)
    weights = F.signed_weights(F.advantages(rewards), rewards)
    shown = torch.tensor([[row[1] for row in SAMPLES]], dtype=torch.float64)
    assert torch.equal(weights.round(decimals=4), shown)
    assert weights.flatten().tolist() == pytest.approx(advantages(), abs=1e-12)


@pytest.mark.parametrize(("errors", "column", "shown"), [(REFERENCE_ERRORS, 4, START), (ERRORS, 5, NOW)])
def test_the_gradient_of_the_page_is_the_engines(errors: tuple[float, ...], column: int, shown: list[float]) -> None:
    """Predictions whose squared errors are those of the page; d dsm / d prediction = 2 prediction."""
    roots = torch.tensor(errors, dtype=torch.float64).sqrt()[:, None].requires_grad_()
    reference = torch.tensor(REFERENCE_ERRORS, dtype=torch.float64).sqrt()[:, None]
    weights = torch.tensor([advantages()], dtype=torch.float64)
    F.group_preference_loss(roots, reference, torch.zeros_like(roots), weights, beta=BETA).backward()  # type: ignore[no-untyped-call]
    assert roots.grad is not None
    found = (roots.grad / (2 * roots.detach())).flatten().tolist()
    assert found == pytest.approx([row[column] for row in SAMPLES], abs=5.1e-5)
    value = preference(errors)
    assert [value, sigmoid(value), math.log1p(math.exp(value))] == pytest.approx(shown, abs=5.1e-5)


def test_the_gradient_of_the_logarithm_is_the_same() -> None:
    """That of -log sigmoid(-S) / beta, by automatic differentiation of what the page defines."""
    errors = torch.tensor(ERRORS, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(advantages(), dtype=torch.float64)
    statistic = BETA / 4 * (weights * (errors - torch.tensor(REFERENCE_ERRORS, dtype=torch.float64))).sum()
    (-torch.nn.functional.logsigmoid(-statistic) / BETA).backward()  # type: ignore[no-untyped-call]
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx([row[5] for row in SAMPLES], abs=5.1e-5)


def test_the_snippet_prints_what_the_page_says() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^```text\n(tensor.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "docs/how-dgpo-works.md", "exec"), {})
    assert [output.getvalue()] == shown


def test_the_pictures_show_the_example() -> None:
    drawn = pictures()
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == drawn, "run python -m documentation.pictures"
    assert set(re.findall(r"images/how-dgpo-works/([\w.]+)", PAGE)) == set(drawn)
    text = drawn["weights.svg"] + drawn["sigmoid.svg"]
    for number in (*advantages(), preference(ERRORS), sigmoid(preference(ERRORS))):
        assert f"{number:.2f}".replace("-", "−") in text
