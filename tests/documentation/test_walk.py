"""What a newcomer reads and types, typed: docs/first-steps.md from its first command to its last, and the run file of
README.md up to where it needs weights. Runs are as the pages have them, but of two iterations with few samples."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages import ROOT, blocks, commands, section

pytestmark = pytest.mark.slow

STEPS = "docs/first-steps.md"
SMALL = ("run.iterations=2", "rollout.groups=2", "rollout.steps=4", "evaluation.prompts=6")
"""Settings that are added to what the pages train."""
WITHOUT_WEIGHTS = os.environ | {"HF_HUB_OFFLINE": "1"}


class Desk:
    """A directory in which commands are typed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "examples").symlink_to(ROOT / "examples")

    def command(self, words: list[str]) -> list[str]:
        """Return how a command is started here: `dgpo` and `python` are those of this environment."""
        name, *others = words
        assert name in ("dgpo", "python", ".venv/bin/python"), words
        return [sys.executable, *(["-m", "dgpo_cli"] if name == "dgpo" else []), *others]

    def type(self, words: list[str], *more: str, code: int = 0) -> str:
        """Type a command with more arguments at its end; return what it prints, on standard error if nowhere else."""
        done = subprocess.run(
            [*self.command(words), *more], cwd=self.directory, env=WITHOUT_WEIGHTS, capture_output=True, text=True,
            timeout=1800,
        )  # fmt: skip
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout or done.stderr

    def train(self, words: list[str], *more: str) -> str:
        """Type a command that trains the miniature, with `SMALL`."""
        assert "train" in words
        assert "examples/quickstart.yaml" in words
        return self.type(words, *(word for setting in SMALL for word in ("--set", setting)), *more)

    def pixels(self, name: str) -> np.ndarray:
        """Return an image that was written, uint8 [H, W, 3]."""
        with Image.open(self.directory / name) as image:
            return np.asarray(image.convert("RGB"))

    def records(self, name: str) -> list[str]:
        """Return the lines of a log."""
        return (self.directory / "runs" / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Where the quickstart has been trained with the command of the page."""
    desk = Desk(tmp_path_factory.mktemp("walk"))
    (train,) = commands(section(STEPS, "Train"))
    said = desk.train(train)
    (shown,) = blocks(section(STEPS, "Train"), "text")
    form = re.sub(r"\\?\d+\\?\.\d+|\d+", r"[\\d.]+", re.escape(shown.strip()).replace(r"\.\.\.", ".*"))
    assert re.search(f"^{form}$", said, re.MULTILINE), said
    assert "evaluation after iteration 2: geneval-official" in said
    return desk


def test_results_are_looked_at(desk: Desk) -> None:
    report, doctor, watch, before, after = commands(section(STEPS, "Look at the results"))
    place = desk.type(report).strip()
    page = (desk.directory / place).read_text(encoding="utf-8")
    assert place == "runs/quickstart/report.html"
    assert page.count("<img") >= 2
    assert "geneval-official" in page
    assert desk.type(doctor).startswith("runs/quickstart: 2 of 2 iterations, complete; 2 evaluations\n")
    _watched(desk, watch)
    for command in (before, after):
        desk.type(command)
    assert (desk.pixels("before/grid.png") != desk.pixels("after/grid.png")).any()


def _watched(desk: Desk, command: list[str]) -> None:
    """The page of `dgpo watch` answers at the address that is printed, and Ctrl-C ends it."""
    started = [*desk.command(command), "--port", "0"]
    with subprocess.Popen(started, cwd=desk.directory, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(line.strip() for line in server.stdout if line.startswith("http://"))
            with urllib.request.urlopen(address, timeout=600) as answer:
                assert "<title>dgpo watch</title>" in answer.read().decode()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(600) == 0


def test_a_stopped_run_continues_to_the_same_result(desk: Desk) -> None:
    """As the page says: that of the quickstart, which was not stopped, bit for bit."""
    begin, go_on = commands(section(STEPS, "Stop and continue"))
    said = desk.train(begin, "--max-iterations", "1").splitlines()
    assert said[-2] == "1 iterations are left; continue with --resume"
    assert "resuming after iteration 1 of runs/short for 2 iterations on cpu\n" in desk.train(go_on)
    assert desk.records("short/metrics.jsonl") == desk.records("quickstart/metrics.jsonl")
    short, whole = (desk.directory / f"runs/{name}/checkpoints/000002" for name in ("short", "quickstart"))
    for file in ("weights.safetensors", "optimizer.safetensors"):
        assert (short / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_changed_setting_is_compared(desk: Desk) -> None:
    train, compare, validate = commands(section(STEPS, "Change a setting and compare"))
    desk.train(train)
    config = (desk.directory / "runs/rank/config.yaml").read_text(encoding="utf-8")
    assert re.search(r"^weighting:\n +use: rank$", config, re.MULTILINE)
    assert re.search(r"^ +group_size: 8$", config, re.MULTILINE)
    said = " ".join(desk.type(compare).split())
    scores = json.loads(desk.type(compare, "--format", "json"))["scores"]
    assert [score["run"] for score in scores] == ["quickstart", "rank"]
    assert f"rank {scores[1]['value']:.3f}" in said
    assert "Differences are to quickstart" in said
    assert "rank: runs/rank, held-out prompts after iteration 2" in said
    assert desk.type(validate).startswith("examples/quickstart.yaml: valid\n")


def test_the_adapter_changes_what_diffusers_draws(desk: Desk) -> None:
    (export,) = commands(section(STEPS, "Use the adapter in diffusers"))
    (script,) = blocks(section(STEPS, "Use the adapter in diffusers"), "python")
    assert desk.type(export).endswith("ema weights of runs/quickstart after iteration 2: adapter\n")
    (desk.directory / "use.py").write_text(script, encoding="utf-8")
    desk.type(["python", "use.py"])
    base, adapted = (desk.pixels(f"{name}.png").astype(int) for name in ("base", "adapter"))
    assert base.shape == (64, 64, 3)
    assert np.abs(adapted - base).max() > 2, "more than roundings"
    (desk.directory / "use.py").write_text(script.replace('pipeline.load_lora_weights("adapter")\n', ""))
    desk.type(["python", "use.py"])
    assert (desk.pixels("adapter.png") == base).all(), "without the adapter, the same noise gives the same image"


def test_a_mistake_is_answered_as_shown(desk: Desk) -> None:
    (command,) = commands(section(STEPS, "Make a mistake"))
    (shown,) = blocks(section(STEPS, "Make a mistake"), "text")
    assert desk.type(command, code=2).endswith(shown)


def test_the_quickstart_of_the_readme_finds_a_run_that_has_ended(desk: Desk) -> None:
    train = next(words for words in commands(section("README.md", "Install")) if "train" in words)
    assert train[:3] == [".venv/bin/python", "-m", "dgpo_cli"]
    assert "nothing is left to train" in desk.train(train)
    looked = commands(section("README.md", "Look at a run"))
    (evaluate,) = [words for words in looked if "evaluate" in words]
    assert "geneval-official" in desk.type(evaluate, "--limit", "4")


def test_the_run_file_of_the_readme_is_checked_and_planned(desk: Desk) -> None:
    """Without weights, up to the first command that needs them."""
    page = section("README.md", "Train your own model")
    (run_file,) = blocks(page, "yaml")
    (desk.directory / "run.yaml").write_text(run_file, encoding="utf-8")
    (desk.directory / "train.txt").write_text("a photo of a cat\na red bus in the rain\n", encoding="utf-8")
    (desk.directory / "heldout.txt").write_text("a watercolor of a fox\n", encoding="utf-8")
    validate, explain, plan, dry_run, *_ = commands(page)
    said = desk.type(validate)
    assert said.startswith("run.yaml: valid\n")
    assert "training prompts: 2 from train.txt" in said
    assert "rollout.group_size" in desk.type(explain)
    planned = desk.type(plan)
    assert re.search(r"^h100 +yes ", planned, re.MULTILINE), planned
    assert max(map(len, planned.splitlines())) <= 80
    assert "hf download stabilityai/stable-diffusion-3.5-medium" in desk.type(dry_run, code=2)
