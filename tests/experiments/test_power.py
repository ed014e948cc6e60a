"""What runs are compared by, and the seeds that an experiment needs: from made-up results and from the records."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dgpo_core.errors import UserError
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import Results, compare
from dgpo_lab.ablation.traces import Trace
from dgpo_schemas.metrics import PromptScores, RewardScores
from experiments.__main__ import main
from experiments.catalog import HERE
from experiments.power import report
from experiments.record import load
from experiments.statistics.summaries import horizon, iteration_seconds, last_scores, summaries

RECORDS = HERE.parent / "docs" / "experiments"


def trace(
    variant: str, seed: int, scores: Sequence[float], *, seconds: float = 2.0, values: Sequence[float] | None = None
) -> Trace:
    """An evaluation every 10 iterations of `seconds` and 96 samples each."""
    iterations = [10 * i for i in range(len(scores))]
    prompts = None
    if values is not None:
        rewards = {"score": RewardScores(tasks=["all"] * len(values), values=list(values))}
        texts = [f"p{i}" for i in range(len(values))]
        prompts = PromptScores(iteration=iterations[-1], model="ema", prompts=texts, rewards=rewards)
    return Trace(
        variant, seed, State("finished"), ended_by="iterations", iterations=iterations, scores=list(scores),
        seconds=[seconds * i for i in iterations], samples=[96 * i for i in iterations], prompts=prompts,
    )  # fmt: skip


def results(traces: Sequence[Trace]) -> Results:
    named = {name: {"w": name} for name in dict.fromkeys(one.variant for one in traces)}
    return compare(named, traces, reward="score", baseline="base", target=None)


# -- summaries ------------------------------------------------------------------------------------------------------


def test_equal_samples_and_equal_seconds() -> None:
    """`slow` takes twice the seconds of an iteration, and one of its cells was held up for a minute."""
    traces = [trace("base", s, [0.4, 0.5, 0.7, 0.8]) for s in range(3)]
    traces += [trace("slow", s, [0.4, 0.6, 0.9, 0.9], seconds=4.0 if s else 6.0) for s in range(3)]
    found = results(traces)
    assert iteration_seconds(found) == {"base": 2.0, "slow": 4.0}
    assert (horizon(found, "samples"), horizon(found, "seconds")) == (30 * 96, 60.0)
    assert summaries(found, "samples", "score") == last_scores(found)
    at_seconds = summaries(found, "seconds", "score")
    assert at_seconds["base"] == pytest.approx(dict.fromkeys(range(3), 0.8))
    assert at_seconds["slow"] == pytest.approx(dict.fromkeys(range(3), 0.75))  # after 15 iterations, in all three
    assert summaries(found, "samples", "area")["slow"][0] == pytest.approx((0.5 + 0.75 + 0.9) / 3)
    assert summaries(found, "seconds", "area")["slow"][0] == pytest.approx((0.5 * 10 + 0.675 * 5) / 15)


def test_the_shortest_cell_sets_the_budget() -> None:
    found = results([trace("base", 0, [0.4, 0.5, 0.7]), trace("short", 0, [0.4, 0.6]), trace("base", 1, [0.4, 0.6])])
    assert horizon(found, "samples") == 960
    assert summaries(found, "samples", "score") == {"base": {0: 0.5, 1: 0.6}, "short": {0: 0.6}}


# -- reports --------------------------------------------------------------------------------------------------------


def test_the_seeds_for_a_record_are_those_of_its_differences() -> None:
    """Against numpy and scipy, from the record's numbers alone."""
    data = json.loads((RECORDS / "e5" / "record.json").read_text())
    scores = {(t["variant"], t["seed"]): t["scores"][-1] for t in data["traces"]}
    names = [name for name in data["variants"] if name != data["baseline"]]
    seeds = sorted({t["seed"] for t in data["traces"]})
    differences = {n: [scores[n, s] - scores[data["baseline"], s] for s in seeds] for n in names}
    lines = list(report(load(RECORDS / "e5" / "record.json").results, 0.015, [150, 600]))
    text = "\n".join(lines)

    def needed(sd: float) -> int:
        return next(n for n in range(2, 999) if stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n) <= 0.015)

    for name in names:
        sd = float(np.std(differences[name], ddof=1))
        (line,) = [line for line in lines if line.startswith(name + " ")]
        half = stats.t.ppf(0.975, len(seeds) - 1) * sd / math.sqrt(len(seeds))
        rest = line.removeprefix(name).split()
        assert rest[:4] == [str(len(seeds)), f"{sd:.4f}", f"{half:.4f}", str(needed(sd))]
    pooled = math.sqrt(np.mean([np.var(d, ddof=1) for d in differences.values()]))
    assert f"last score: pooled sd {pooled:.4f} [" in text
    assert f"({len(names) * (len(seeds) - 1)} degrees of freedom): {needed(pooled)} seeds;" in text
    by_prompts = [line.split() for line in lines if line.startswith(("150 ", "600 "))]
    assert [cells[0] for cells in by_prompts] == ["150", "600"]
    assert float(by_prompts[1][1]) < float(by_prompts[0][1]), "more prompts, narrower intervals over seeds"


def test_more_prompts_help_as_far_as_they_vary() -> None:
    generator = np.random.default_rng(0)
    traces = []
    for seed in range(6):
        base, other = generator.random((2, 40)).round(3).tolist()
        traces += [trace("base", seed, [0.4, float(np.mean(base))], values=base)]
        traces += [trace("x", seed, [0.4, float(np.mean(other))], values=other)]
    text = "\n".join(report(results(traces), 0.02, []))
    (within,) = re.findall(r"of a prompt within a seed (\S+)\. ", text)
    assert float(within) == pytest.approx(math.sqrt(1 / 6), rel=0.1)  # the difference of two uniform numbers
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["40", "80", "160"]


def test_what_is_not_known_is_said() -> None:
    alone = [trace("base", s, [0.4, 0.5 + s / 9]) for s in range(3)] + [trace("x", 0, [0.4, 0.5])]
    with pytest.raises(UserError, match="two seeds in common with the baseline base"):
        list(report(results(alone), 0.015, []))
    unkept = [trace(v, s, [0.4, 0.5 + s / 9 + (v == "x") * s**2 / 99]) for v in ("base", "x") for s in range(3)]
    lines = list(report(results(unkept), 0.015, []))
    assert lines[-1].startswith("Scores of single prompts were not kept")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["e5", "--half-width", "0.015"], 0, "last score: pooled sd"),
        (["e9", "--prompts", "500"], 0, "500 "),
        (["e55"], 2, "unknown experiment 'e55'; did you mean e5? (with a power: e1"),
        (["seconds"], 2, "unknown experiment 'seconds'"),
        (["e5", "--half-width", "inf"], 2, "inf is not a finite number"),
        (["e8"], 2, "two seeds in common with the baseline dgpo"),
        (["e5", "--pages", "nowhere"], 2, "run the experiment first"),
    ],
)
def test_the_command(
    arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE.parent)
    monkeypatch.setattr(sys, "argv", ["experiments", "power", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert int(end.value.code or 0) == code
    output = capsys.readouterr()
    assert says in " ".join((output.err if code else output.out).replace("│", " ").split())
    assert "Traceback" not in output.err


def test_the_record_may_be_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e1").mkdir()
    (tmp_path / "e1" / "record.json").write_bytes((RECORDS / "e1" / "record.json").read_bytes())
    monkeypatch.setattr(sys, "argv", ["experiments", "power", "e1", "--pages", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.startswith("Differences to flow-euler, paired by seed. Seeds for a 95 % interval")
