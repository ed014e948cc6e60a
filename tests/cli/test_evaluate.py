"""`dgpo evaluate`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgpo_kit.toy import BrightnessReward

Run = Callable[..., Any]
Write = Callable[..., Path]


def all_logged(run: Path, iteration: int) -> list[dict[str, Any]]:
    """What the run itself wrote of its evaluation."""
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["iteration"] == iteration]


def logged(run: Path, iteration: int) -> dict[str, Any]:
    """What it wrote of its one reward."""
    (record,) = [record for record in all_logged(run, iteration) if record["role"] == "target"]
    return record


def printed(out: str) -> dict[str, Any]:
    """The record of the one reward among those of --json."""
    (record,) = [record for record in json.loads(out) if record["role"] == "target"]
    return record


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in a text, without their frames."""
    lines = [line for line in text.splitlines() if line and line[0] in "│┃"]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(("options", "iteration"), [([], 4), (["--checkpoint", "2"], 2), (["--checkpoint", "0"], 0)])
def test_it_repeats_what_the_run_logged(dgpo: Run, trained: Any, options: list[str], iteration: int) -> None:
    done = dgpo("evaluate", trained.path, "--json", *options)
    assert (done.code, done.err) == (0, "")
    records = json.loads(done.out)
    assert records == all_logged(trained.path, iteration)
    assert [(record["reward"], record["role"]) for record in records] == [
        ("brightness", "target"),
        *((name, "statistic") for name in ("diversity", "saturation", "edge_density", "dark_pixels")),
    ]


def test_what_a_reward_prints_is_no_result(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    score = BrightnessReward.score

    def loud(self: BrightnessReward, *arguments: Any) -> Any:
        print("so bright")  # noqa: T201
        return score(self, *arguments)

    monkeypatch.setattr(BrightnessReward, "score", loud)
    done = dgpo("evaluate", trained.path, "--json")
    assert json.loads(done.out) == all_logged(trained.path, 4)
    assert "so bright" in done.err


def test_the_base_is_what_the_run_started_from(dgpo: Run, trained: Any) -> None:
    start = [record | {"model": "base"} for record in all_logged(trained.path, 0)]
    assert json.loads(dgpo("evaluate", trained.path, "--model", "base", "--json").out) == start
    assert json.loads(dgpo("evaluate", trained.file, "--json").out) == start


def test_models_and_options_are_followed(dgpo: Run, trained: Any) -> None:
    def value(*arguments: object) -> float:
        return float(printed(dgpo("evaluate", *arguments, "--json").out)["value"])

    newest = value(trained.path)
    assert value(trained.path, "--model", "ema", "--checkpoint", "newest") == newest
    assert value(trained.path, "--seed", 3, "--steps", 3, "--guidance", 1, "-n", 2, "--limit", 6) == newest
    for options in (["--model", "policy"], ["--model", "ema_fast"], ["--seed", 4], ["--steps", 2], ["--guidance", 3],
                    ["-n", 1], ["--limit", 3]):  # fmt: skip
        assert value(trained.path, *options) != newest, options
    assert value(trained.file, "--set", "rollout.steps=5") == value(trained.file, "--steps", 5)


def test_the_table_says_what_the_log_says(dgpo: Run, trained: Any) -> None:
    done = dgpo("evaluate", trained.path)
    assert (done.code, done.err) == (0, "")
    record = logged(trained.path, 4)
    lines = done.out.splitlines()
    assert lines[0] == "ema weights of runs/toy after iteration 4"
    known = {r["reward"]: r["value"] for r in all_logged(trained.path, 4) if r["role"] == "statistic"}
    assert lines[-2] == (
        f"image statistics: diversity {known['diversity']:.3f}, saturation {known['saturation']:.3f}, "
        f"edge density {known['edge_density']:.3f}, dark pixels {known['dark_pixels']:.3f}"
    )
    assert lines[-1] == "6 prompts x 2 samples"

    def cells(name: str, score: dict[str, float]) -> list[str]:
        return [name, f"{score['value']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"]

    assert rows(done.out) == [
        ["task", "brightness", "95 % interval"],
        cells("even", record["groups"]["even"]),
        cells("odd", record["groups"]["odd"]),
        cells("mean", record),
    ]
    assert "after iteration 4" in dgpo("evaluate", trained.path, "--model", "policy").out.splitlines()[0]
    assert dgpo("evaluate", trained.path, "--model", "base").out.startswith("base model of runs/toy\n")
    assert dgpo("evaluate", trained.file).out.startswith("base model of run.yaml\n")
    assert dgpo("evaluate", trained.path, "-n", 1).out.endswith("\n6 prompts x 1 sample\n")


def test_the_scores_are_means_of_the_samples_that_are_written(dgpo: Run, trained: Any) -> None:
    """Tasks by hand: samples to prompts, prompts to tasks, tasks to the mean; intervals with another bootstrap."""
    texts = [f"image {i}" for i in range(30)]
    tags = ["even"] * 20 + ["odd"] * 10  # the mean of the tasks is not the mean of the prompts
    lines = [json.dumps({"prompt": text, "tag": tag}) for text, tag in zip(texts, tags, strict=True)]
    Path("p.jsonl").write_text("\n".join(lines))
    done = dgpo("evaluate", trained.path, "--prompts", "p.jsonl", "-n", 3, "--output", "scores.json", "--json")
    assert (done.code, done.err) == (0, "")
    record = printed(done.out)
    written = json.loads(Path("scores.json").read_text())
    assert written["target"] == "ema weights of runs/toy after iteration 4"
    assert written["records"] == json.loads(done.out)
    samples = written["samples"]
    assert [(s["prompt"], s["member"]) for s in samples] == [(text, i) for text in texts for i in range(3)]
    assert all(s["brightness"]["value"] == s["brightness"]["brightness"] for s in samples)  # value and diagnostics

    prompts = np.array([s["brightness"]["value"] for s in samples]).reshape(30, 3).mean(1)
    even, odd = prompts[:20], prompts[20:]
    assert record["groups"]["even"]["value"] == pytest.approx(even.mean(), abs=1e-9)
    assert record["groups"]["odd"]["value"] == pytest.approx(odd.mean(), abs=1e-9)
    assert record["value"] == pytest.approx((even.mean() + odd.mean()) / 2, abs=1e-9)
    assert (record["n"], record["groups"]["even"]["n"], record["groups"]["odd"]["n"]) == (30, 20, 10)

    random = np.random.default_rng(1)

    def resampled(values: np.ndarray) -> np.ndarray:
        means: np.ndarray = values[random.integers(0, len(values), (20_000, len(values)))].mean(1)
        return means

    for found, means in (
        (record["groups"]["even"], resampled(even)),
        (record["groups"]["odd"], resampled(odd)),
        (record, (resampled(even) + resampled(odd)) / 2),
    ):
        low, high = np.quantile(means, [0.025, 0.975])
        assert found["low"] == pytest.approx(low, abs=0.1 * (high - low))
        assert found["high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_samples_that_cannot_be_scored_are_counted(dgpo: Run, write_run: Write) -> None:
    file = write_run(rewards=[{"use": "brightness", "options": {"fail": "dark"}}])
    done = dgpo("evaluate", file, "-n", 6, "--output", "scores.json")
    assert done.code == 0
    values = [s["brightness"]["value"] for s in json.loads(Path("scores.json").read_text())["samples"]]
    assert len(values) == 24
    missing = values.count(None)
    assert 0 < missing < 24
    assert done.out.endswith(f"\nbrightness: {missing} of 24 samples could not be scored\n")
    # Left out, not zero: dark is below one half.
    assert float(rows(done.out)[-1][1]) > 0.5


def test_a_reward_that_scores_nothing(dgpo: Run, write_run: Write) -> None:
    file = write_run(rewards=[{"use": "brightness", "options": {"fail": "raise"}}])
    done = dgpo("evaluate", file, "--output", "scores.json")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "evaluation: brightness scored none of 4 samples: brightness: RuntimeError: the lamp is broken\n"
    )
    assert not Path("scores.json").exists()


def test_several_rewards_stand_side_by_side_or_one_below_the_other(dgpo: Run, write_run: Write) -> None:
    """No row is broken, however many rewards there are: output that is no terminal is 80 columns wide."""
    names = ["brightness-of-the-lamp", "gloom", "glare", "dusk"]
    rewards = [{"use": "brightness", "name": name, "options": {"scale": (i + 1) / 4}} for i, name in enumerate(names)]
    two = dgpo("evaluate", write_run(rewards=rewards[1:3]))
    assert rows(two.out)[0] == ["task", "gloom", "95 % interval", "glare", "95 % interval"]
    four = dgpo("evaluate", write_run(rewards=rewards))
    assert max(map(len, four.out.splitlines())) <= 80
    assert four.out.count("image statistics: ") == 1
    found = rows(four.out)
    assert [row[1] for row in found if row[0] == "task"] == names
    means = [float(row[1]) for row in found if row[0] == "mean"]
    assert means == pytest.approx([means[0] * scale for scale in (1, 2, 3, 4)], abs=3e-3)
    assert all(len(row) == 3 and all(row) for row in found)


def test_prompts_without_a_task(dgpo: Run, trained: Any) -> None:
    Path("p.txt").write_text("a lamp\ntwo lamps\n")
    found = rows(dgpo("evaluate", trained.path, "--prompts", "p.txt").out)
    assert [row[0] for row in found] == ["task", "other", "mean"]


def test_without_held_out_prompts_it_wants_a_file(dgpo: Run, write_run: Write) -> None:
    file = write_run(prompts={"heldout": None}, evaluation={"every": 0})
    done = dgpo("evaluate", file)
    assert (done.code, done.out) == (2, "")
    assert done.err == "run.yaml: has no held-out prompts; name a file with --prompts\n"
    Path("p.txt").write_text("a lamp\n")
    assert dgpo("evaluate", file, "--prompts", "p.txt").code == 0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("runs", "--output runs: is a directory; name a file"),
        ("new/scores.json", "--output new/scores.json: no such directory new"),
        ("run.yaml/scores.json", "--output run.yaml/scores.json: no such directory run.yaml"),
    ],
)
def test_the_output_is_checked_before_the_work(
    dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("hours of sampling, without effect")

    monkeypatch.setattr("dgpo_core.api.target.open_target", work)
    done = dgpo("evaluate", trained.path, "--output", output)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/tyo"], "runs/tyo: no such run directory or run file"),
        (["runs"], "runs: not a run directory (it has no config.yaml)"),
        (["runs/toy", "--model", "slwo"], "--model slwo: choose one of base, policy, ema_fast, ema"),
        (["run.yaml", "--model", "ema_fast"], "--model ema_fast: run.yaml is a run file, which has only its base "
         "model; name a run directory"),
        (["runs/toy", "--set", "run.seed=4"], "--set belongs to a run file; a run directory keeps the configuration it "
         "was trained with"),
        (["runs/toy", "--checkpoint", "9"], "runs/toy/checkpoints: no checkpoint '9'; there are newest, best and "
         "iterations 0, 1, 2, 3, 4"),
        (["runs/toy", "--prompts", "p.csv"], "p.csv: a prompt file must end in .txt (one prompt per line), .jsonl (one "
         "object per line) or .json (one list); convert it with pandas: pandas.read_csv('p.csv').to_json('p.jsonl', "
         "orient='records', lines=True)"),
    ],
)  # fmt: skip
def test_mistakes(dgpo: Run, trained: Any, arguments: list[str], expected: str) -> None:
    done = dgpo("evaluate", *arguments)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")


def test_a_run_whose_configuration_was_damaged(dgpo: Run, trained: Any) -> None:
    (trained.path / "config.yaml").write_text("run: {name: toy}\n")
    done = dgpo("evaluate", trained.path)
    assert (done.code, done.out) == (2, "")
    assert "runs/toy/config.yaml:1: run.iterations: is missing" in done.err


def test_weights_of_another_adapter(dgpo: Run, trained: Any) -> None:
    shutil.copytree(trained.path, "runs/other")
    config = Path("runs/other/config.yaml")
    text = config.read_text().partition("\n")[2]  # without the digest, as somebody does who means the change
    config.write_text(re.sub(r"rank: 4", "rank: 3", text))
    done = dgpo("evaluate", "runs/other")
    assert (done.code, done.out) == (2, "")
    # Two matrices in each of two layers, in each of three views.
    assert done.err == (
        "runs/other/checkpoints/000004: made by another model or adapter: 12 weights differ, the first is "
        "ema/0.down.weight (expected (3, 37), found (4, 37))\n"
    )
