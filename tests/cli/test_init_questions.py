"""The questions of `dgpo init`."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

import dgpo_cli.init
import dgpo_cli.new_run.questions as questions
from dgpo_core.errors import UserError
from tests.begun import CHOICES, config_of, prompt_files
from tests.conftest import Outcome

ROOT = Path(__file__).parents[2]
Run = Callable[..., Outcome]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], list[str]]:
    """`answer(["sd3", ""])`: what is typed; an empty text is the default. Returns the list of questions."""

    def script(answers: Sequence[str]) -> list[str]:
        asked: list[str] = []
        given = iter(answers)

        def prompt(text: str, default: str | None = None, **_: Any) -> str:
            asked.append(text)
            typed = next(given, None)
            if typed is None:
                raise typer.Abort
            return typed or (default if default is not None else "")

        monkeypatch.setattr(dgpo_cli.init, "_has_terminal", lambda: True)
        monkeypatch.setattr(questions.typer, "prompt", prompt)
        return asked

    return script


def test_the_first_question_may_be_the_last(installed: Run, answer: Any) -> None:
    asked = answer(["", ""])
    done = installed("init")
    assert done.code == 0
    assert asked == ["model", "reward"]
    assert re.search(r"^   1  miniature +Tiny models", done.err, re.MULTILINE)
    assert max(map(len, done.err.splitlines())) <= 80
    assert config_of("run.yaml") == config_of(ROOT / "examples" / "quickstart.yaml")


def test_answers_are_those_of_options(installed: Run, answer: Any, here: Path) -> None:
    """By name, by number, and again after a mistake."""
    prompt_files(here)
    number = str(list(CHOICES.models).index("sd3") + 1)
    asked = answer([
        "sd33", number, "/weights", "motion", "pickscore", "prompts/trian.txt", "prompts/train.txt",
        "prompts/heldout.txt", "many", "24", "0", "8", "adapter", "",
    ])  # fmt: skip
    done = installed("init", "a.yaml")
    assert done.code == 0, done.err
    assert asked == [
        "model", "model", "weights", "reward", "reward", "prompts", "prompts", "heldout", "card", "card", "processes",
        "processes", "train", "train",
    ]  # fmt: skip
    for message in (
        "unknown model 'sd33'; did you mean sd3?",
        "--reward: motion scores videos, but sd3 generates images",
        "prompts/trian.txt: no such file",
        "--card many: must be the memory of a GPU",
        "'0' is not a number of GPUs",
        "must be lora or full",
    ):
        assert message in done.err
    assert done.out.endswith("  dgpo train a.yaml --processes 8\n")
    words = ["--model", "sd3", "--weights", "/weights", "--reward", "pickscore", "--card", "24", "--prompts",
             "prompts/train.txt", "--heldout", "prompts/heldout.txt", "--yes"]  # fmt: skip
    assert installed("init", "b.yaml", *words).code == 0
    assert config_of("a.yaml") == config_of("b.yaml")


def test_required_options_are_asked_for(installed: Run, answer: Any) -> None:
    asked = answer(["pickscore"])
    words = ["--model", "sd3", "--weights", "w", "--reward", "pairwise", "--prompts", "geneval", "--card", "24",
             "--processes", "2", "--train", "lora"]  # fmt: skip
    done = installed("init", *words)
    assert done.code == 0, done.err
    assert asked == ["rewards.0.options.reward"]
    assert config_of("run.yaml").rewards[0].options["reward"]["use"] == "pickscore"


def test_prompts_that_cannot_be_read_are_asked_for_again(installed: Run, answer: Any, here: Path) -> None:
    prompt_files(here)
    Path("table").write_text("a cat\n")
    Path("empty.txt").write_text("")
    asked = answer(["table", "empty.txt", "prompts/train.txt", "empty.txt", "prompts/heldout.txt"])
    words = ["--model", "sd3", "--weights", "w", "--reward", "pickscore", "--card", "24", "--processes", "2"]
    done = installed("init", *words, "--train", "lora")
    assert done.code == 0, done.err
    assert asked == ["prompts", "prompts", "prompts", "heldout", "heldout"]
    assert "table: a prompt file must end in .txt" in done.err
    assert done.err.count("empty.txt: ") == 2


def test_text_of_plugins_is_one_line(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answer(["9" * 5000, "evil"])

    def check(name: str) -> None:
        if name != "evil":
            raise UserError("no such name")

    assert questions.choose("x", "About\n\x1b[2Jit", {"evil": "first\nsecond \x1b[31m"}, None, check) == "evil"
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        "", "About \\x1b[2Jit", "   1  evil  first second \\x1b[31m", "no such name",
    ]  # fmt: skip


def test_a_number_of_thousands_of_digits_is_asked_for_again(installed: Run, answer: Any, here: Path) -> None:
    prompt_files(here)
    words = ["--model", "sd3", "--weights", "w", "--reward", "pickscore", "--card", "24", "--train", "lora"]
    asked = answer(["9" * 5000, "2"])
    assert installed("init", *words, "--prompts", "geneval").code == 0
    assert asked == ["processes", "processes"]


def test_an_end_of_the_input_leaves_no_file(installed: Run, answer: Any) -> None:
    answer(["sd3"])
    done = installed("init")
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith("\nnothing was written\n")
    assert not os.listdir()


def test_nothing_is_asked_without_a_terminal(here: Path) -> None:
    """Even if standard input never ends."""
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", "init"], stdin=reading, capture_output=True, text=True, timeout=120
    )
    os.close(reading)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("run.yaml").is_file()


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_leaves_no_file(here: Path) -> None:
    ours, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "dgpo_cli", "init"], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    seen = b""
    while b"model [miniature]" not in seen:
        seen += os.read(ours, 4096)
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal ends with the process
        while more := os.read(ours, 4096):
            seen += more
    os.close(ours)
    assert child.wait(60) == 130
    assert b"nothing was written" in seen
    assert not os.listdir()
