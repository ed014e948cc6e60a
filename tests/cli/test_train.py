"""`dgpo train`: what it does, and what it says in a log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_kit.toy import BrightnessReward
from tests.toy_runs import LINE, TOY, logs, media, result, scores, tree

Run = Callable[..., Any]
Write = Callable[..., Path]


# -- what it does ----------------------------------------------------------------------------------------------------


def test_a_new_run(dgpo: Run, write_run: Write) -> None:
    done = dgpo("train", write_run())
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    assert lines[0] == "training runs/toy for 4 iterations on cpu"
    # Two layers, 37 -> 48 -> 32 with biases: 3392 weights; adapters of rank 4 on both: 660.
    assert lines[1] == "  660 of 4,052 parameters, 6 prompts to train on, 4 held out"
    assert lines[2].startswith("  reward: mean ± std of the samples; kl: ")
    assert lines[3].startswith("  σ(S): 0.5 at first")
    assert max(map(len, lines[2:4])) <= 80
    assert lines[-2].startswith("finished in ")
    assert lines[-1] == "view the report: dgpo report runs/toy"
    found = [match for line in lines if (match := re.fullmatch(LINE, line))]
    assert len(found) == 4
    for match, metrics in zip(found, logs(), strict=True):
        iteration, mean, std, kl, sigmoid = match.groups()
        assert int(iteration) == metrics["iteration"]
        assert float(mean) == pytest.approx(metrics["reward"]["mean"], abs=6e-4)
        assert float(std) == pytest.approx(metrics["reward"]["std"], abs=6e-4)
        assert float(kl) == pytest.approx(metrics["kl"], abs=6e-5)
        assert float(sigmoid) == pytest.approx(metrics["sigmoid"], abs=6e-3)
    evaluations = [line for line in lines if line.startswith(("  evaluation ", "  image statistics: "))]
    assert evaluations == [
        line
        for e in scores()
        for line in (
            f"  evaluation after iteration {e['iteration']}: brightness {e['value']:.3f} "
            f"[{e['low']:.3f}, {e['high']:.3f}] over 4 prompts",
            media(e["iteration"]),
        )
    ]
    assert [e["iteration"] for e in scores()] == [0, 2, 4]


def test_resume_goes_on_as_if_never_stopped(dgpo: Run, write_run: Write, reference: dict[str, bytes]) -> None:
    file = write_run()
    done = dgpo("train", file, "--max-iterations", 1)
    assert done.code == 0
    assert done.err.splitlines()[-3].startswith("paused after ")
    assert done.err.splitlines()[-2] == "3 iterations are left; continue with --resume"
    assert [m["iteration"] for m in logs()] == [1]
    done = dgpo("train", file, "--resume", "--max-iterations", 2)
    assert done.err.startswith("resuming after iteration 1 of runs/toy for 4 iterations on cpu\n")
    assert [m["iteration"] for m in logs()] == [1, 2, 3]
    done = dgpo("train", file, "--resume")
    assert done.code == 0
    assert "left; continue" not in done.err
    assert result() == reference


def test_a_finished_run_is_left_as_it_is(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file)
    before = result()
    assert dgpo("train", file, "--resume").code == 0
    assert result() == before


def test_settings_are_changed_and_kept(dgpo: Run, write_run: Write) -> None:
    changes = ["run.name=other", "run.iterations=1", "optimizer.learning_rate=2e-3", "rewards.0.weight=3"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert dgpo("train", write_run(), *arguments).code == 0
    (metrics,) = logs(run=Path("runs/other"))
    assert metrics["learning_rate"] == 2e-3
    assert metrics["reward"]["mean"] == pytest.approx(3 * metrics["rewards"]["brightness"]["mean"])
    saved = yaml.safe_load(Path("runs/other/config.yaml").read_text())
    assert (saved["run"]["name"], saved["rewards"][0]["weight"]) == ("other", 3)
    assert not TOY.exists()


@pytest.mark.parametrize("name", ["3e-4", "0o7", "010"])
def test_a_name_that_looks_like_a_number_stays_a_name(dgpo: Run, write_run: Write, name: str) -> None:
    file = write_run(run={"name": name})
    file.write_text(file.read_text().replace(f"name: {name}\n", f"name: '{name}'\n"))
    assert dgpo("train", file, "--max-iterations", 1).code == 0
    assert dgpo("train", file, "--resume").code == 0
    assert dgpo("evaluate", f"runs/{name}", "--json").code == 0
    assert [m["iteration"] for m in logs(run=Path("runs", name))] == [1, 2, 3, 4]


@pytest.mark.parametrize("trackers", ["[]", "[tensorboard]"])
def test_a_dry_run_writes_nothing(dgpo: Run, write_run: Write, trackers: str) -> None:
    file = write_run()
    before = tree(Path())
    done = dgpo("train", file, "--dry-run", "--set", f"logging.trackers={trackers}")
    assert (done.code, done.err) == (0, "")
    lines = dict(line.partition(": ")[::2] for line in done.out.splitlines())
    assert lines["device"] == "cpu"
    assert lines["trained parameters"] == "660"
    assert lines["latent"] == "(2, 4, 4)"
    rewards = re.fullmatch(r"\{'brightness': \[(\S+), (\S+)\]\}", lines["rewards"])
    assert rewards is not None
    assert all(0 < float(value) < 1 for value in rewards.groups())
    sizes = {"rollout": "16 samples at once", "scoring": "16 samples at once", "update": "micro-batches of 4"}
    for phase, size in sizes.items():
        assert re.fullmatch(rf"\d+\.\d\d GiB on cpu, {size}", lines[f"peak memory, {phase}"])
    assert [line for line in done.out.splitlines() if len(line) > 80] == []
    assert done.out.endswith("\ndry run passed; nothing was written\n")
    assert tree(Path()) == before
    assert not Path("runs").exists()


def test_a_dry_run_leaves_the_run_alone(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 1)
    before = tree(Path())
    assert dgpo("train", file, "--dry-run").code == 0
    assert tree(Path()) == before


def test_a_dry_run_does_not_pass_when_a_reward_scores_nothing(dgpo: Run, write_run: Write) -> None:
    file = write_run(rewards=[{"use": "brightness", "options": {"fail": "raise"}}])
    done = dgpo("train", file, "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "dry run: reward brightness scored none of 2 samples: brightness: RuntimeError: the lamp is broken\n"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("how", [["--quiet"], ["-q"], ["--set", "logging.console=false"]])
def test_quiet(dgpo: Run, write_run: Write, how: list[str]) -> None:
    done = dgpo("train", write_run(), *how)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(logs()) == 4


def test_missing_rewards_are_reported(dgpo: Run, write_run: Write) -> None:
    dark = {"rewards": [{"use": "brightness", "options": {"fail": "dark"}}], "scoring": {"max_missing": 0.99}}
    file = write_run(**dark, run={"iterations": 1})
    done = dgpo("train", file, "--set", "evaluation.samples_per_prompt=6")
    (metrics,) = logs()
    assert 0 < metrics["missing_rewards"] < 16
    assert f"  missing {metrics['missing_rewards']}\n" in done.err
    first = scores()[0]
    assert 0 < first["missing"] < 24
    assert f"over 4 prompts, {first['missing']} samples missing\n" in done.err
    assert media(0, ("diversity", "saturation", "edge_density", "dark_pixels")) in done.err.splitlines()


def test_warnings_are_lines_without_a_traceback(dgpo: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    file = write_run(scoring={"max_missing": 0.25})
    dgpo("train", file, "--max-iterations", 2)
    (TOY / "checkpoints/000002/optimizer.safetensors").unlink()
    score = BrightnessReward.score
    calls = iter(range(99))

    def flickering(self: BrightnessReward, *arguments: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("the lamp flickers")
        return score(self, *arguments)

    monkeypatch.setattr(BrightnessReward, "score", flickering)
    done = dgpo("train", file, "--resume", "--quiet", "--set", "rollout.micro_batch=4")
    assert done.code == 0
    damaged, failed = done.err.splitlines()
    assert damaged == (
        "warning: damaged checkpoint, trying the one before: runs/toy/checkpoints/000002/optimizer.safetensors: missing"
    )
    assert re.fullmatch(
        r"warning: reward failed, 4 samples are missing: brightness: RuntimeError: the lamp flickers "
        rf"\(at {re.escape(__file__)}:\d+\)",
        failed,
    )


def test_a_run_starts_from_the_weights_of_another(dgpo: Callable[..., Any], trained: Any) -> None:
    done = dgpo(
        "train",
        trained.file,
        "--init-from",
        f"{trained.path}@4:policy",
        "--set",
        "run.name=second",
        "--set",
        "run.output=runs",
    )
    assert done.code == 0, done.err
    assert "starts from the policy weights of runs/toy after iteration 4" in done.err
    config = yaml.safe_load(Path("runs/second/config.yaml").read_text())
    assert config["run"]["init_from"] == f"{trained.path.absolute()}@4:policy"
    done = dgpo(
        "train", trained.file, "--init-from", "runs/nowhere", "--set", "run.name=third", "--set", "run.output=runs"
    )
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("run.init_from: runs/nowhere: no such run directory; allowed is RUN, RUN@CHECKPOINT")
    assert not Path("runs/third").exists()
