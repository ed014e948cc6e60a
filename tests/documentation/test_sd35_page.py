"""The numbers of docs/sd35-on-eight-gpus.md are those that `dgpo plan` prints."""

from __future__ import annotations

import json
import re

import pytest

from dgpo_cli.main import main
from documentation.links import ROOT

PAGE = " ".join((ROOT / "docs" / "sd35-on-eight-gpus.md").read_text().split())
RUN = "examples/sd35-geneval.yaml"


@pytest.mark.slow
def test_the_plan_is_that_of_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        main(["plan", RUN, "--card", "all", "--processes", "8", "--json"])
    assert caught.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    shown = re.findall(r"\| ([\w-]+) \| ([\d.]+) s \| ([\d.]+) h \| (\d+) \|", PAGE)
    assert {card for card, *_ in shown} == {card for card, found in plan["cards"].items() if found["fits"]}
    for card, seconds, hours, price in shown:
        found = plan["cards"][card]
        assert f"{found['iteration_seconds']:.1f}" == seconds, card
        assert f"{found['iteration_seconds'] * 1000 / 3600:.1f}" == hours, card
        assert f"{found['usd_per_1000_iterations']:.0f}" == price, card
    peta = {name: f"{count / 1e15:.1f}" for name, count in plan["operations"].items()}
    assert f"{peta['rollout']} PFLOP of rollouts and {peta['optimize']} of training" in PAGE
    assert f"Peak memory is {max(plan['peak_bytes'].values()) / 2**30:.1f} GiB per GPU" in PAGE
    model = [f"{plan['held_bytes'][part] / 2**30:.1f}" for part in ("transformer", "autoencoder", "text encoders")]
    assert f"{' + '.join(model)} GiB in bfloat16" in PAGE
    assert f"{plan['held_bytes']['trained weights'] / 1e6:.0f} MB in float32" in PAGE
