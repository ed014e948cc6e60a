"""What docs/judge.md tells a newcomer to type, typed: the commands, the files, and what they print."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/judge.md"


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of every console block."""
    found = []
    for block in blocks(text, "console"):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            found.append((line, output))
    return found


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def arguments(command: str) -> list[str]:
    """Split a command as a shell does; `dgpo` and `python` are those of this environment."""
    name, *others = shlex.split(command)
    return [sys.executable, *(["-m", "dgpo_cli"] if name == "dgpo" else []), *others]


@pytest.mark.slow
def test_a_newcomer_writes_a_question_and_trains_with_it(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8").replace("8000", free_port())
    (question, *_), (run_file,) = blocks(page, "text"), blocks(page, "yaml")
    (tmp_path / "cozy.txt").write_text(question)
    (tmp_path / "cozy.yaml").write_text(run_file)
    (serve, announced), *typed = commands(page)
    assert len(typed) == 5
    with subprocess.Popen(arguments(serve), stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == announced
            for command, expected in typed:
                done = subprocess.run(arguments(command), cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=600)
                assert (done.returncode, done.stdout) == (0, expected), command
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    run = tmp_path / "runs/cozy"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["rewards"]["judge"]["missing"] for line in metrics] == [0, 0]
    costs = json.loads((run / "timings.jsonl").read_text().splitlines()[0])["costs"]["judge"]
    assert costs["requests"] == 8
    assert json.loads((run / "rewards/judge/judge.json").read_text())["model"] == "demo-judge"
    assert os.listdir(run / "rewards") == ["judge"]


def test_the_page_lists_every_placeholder() -> None:
    from dgpo_judge.templating import NAMES

    rows = dict(re.findall(r"^\| `([\w-]+)` \| .* \| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for form in ("vqascore", "soft-tifa", "rating", "rubric", "reading"):
        must, may = NAMES[form]
        assert set(re.findall(r"\{(\w+)\}", rows[form])) == must | may
