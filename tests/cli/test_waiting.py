"""What commands show while they load and compute, on a terminal and elsewhere, and what is refused with a preset."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub.utils import http_backoff

from dgpo_cli import working as module
from dgpo_cli.console import Loading, bar, loading
from dgpo_cli.log import announce_retries
from dgpo_cli.working import Work, working

Run = Callable[..., Any]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for before something is shown."""
    for name in ("SOON", "PATIENCE", "AGAIN"):
        monkeypatch.setattr(module, name, 0.02)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")


def until(shown: Callable[[], bool]) -> None:
    """Wait for the thread that tells."""
    limit = time.monotonic() + 60
    while not shown() and time.monotonic() < limit:
        time.sleep(0.01)
    assert shown()


def test_nothing_if_it_ends_soon(capsys: pytest.CaptureFixture[str]) -> None:
    loading("toy")
    with bar("evaluate", shown=True) as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], at_once: None) -> None:
    seen: list[str] = []

    def told(text: str) -> bool:
        found = capsys.readouterr()
        assert found.out == ""
        seen.extend(found.err.splitlines())
        return any(text in line for line in seen)

    with working("loading [there]\x1b[31m") as work:
        until(lambda: told("loading [there]"))
        work.say("drawing")
        work.count(3, 12)
        until(lambda: told("drawing, 3/12, 0 s so far"))
    assert not any("\x1b" in line for line in seen)


def test_a_line_on_a_terminal(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    loading("toy from [there]")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "loading toy from [there] ...\n")
    seen: list[str] = []

    def told(text: str) -> bool:
        found = capsys.readouterr()
        assert found.out == ""
        seen.append(found.err)
        return text in "".join(seen)

    with bar("evaluate [here]", shown=True) as progress:
        until(lambda: told("evaluate [here]"))
        progress(1, 2)
        until(lambda: told("1/2"))


@pytest.mark.parametrize("shown", [True, False])
def test_one_process_tells(
    shown: bool, capsys: pytest.CaptureFixture[str], terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(int(shown)))
    if shown:
        loading("toy")
    with working("evaluate", shown=shown) as work:
        assert "progress" not in {thread.name for thread in threading.enumerate()}
        work.count(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rank", ["", " ", "0", "first"])
def test_a_wrong_rank_is_no_error_here(rank: str, terminal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported where the processes connect."""
    monkeypatch.setenv("RANK", rank)
    loading("toy")
    with working("evaluate"):
        assert ("progress" in {thread.name for thread in threading.enumerate()}) == (rank != "first")


def test_no_control_characters_on_a_terminal(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    seen: list[str] = []

    def told(text: str) -> bool:
        seen.append(capsys.readouterr().err)
        return text in "".join(seen)

    with working("loading \x1b[41ma\nb") as work:
        until(lambda: told("loading \\x1b[41ma\\nb"))
        work.say("then \x1b[42m{task}")
        until(lambda: told("then \\x1b[42m{task}"))
    assert not any(code in "".join(seen) for code in ("\x1b[41m", "\x1b[42m"))


def test_a_run_that_is_loaded(dgpo: Run, write_run: Any, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal too; nothing is told once it has started, nor if it is quiet."""
    begin = Loading.on_start

    def late(loading: Loading, *given: Any) -> None:
        assert "progress" in {thread.name for thread in threading.enumerate()}
        time.sleep(0.1)
        begin(loading, *given)
        assert "progress" not in {thread.name for thread in threading.enumerate()}

    monkeypatch.setattr(Loading, "on_start", late)
    done = dgpo("train", write_run(run={"iterations": 1}))
    assert done.code == 0
    assert re.match(r"loading toy from toy, \d+ s so far\n", done.err)
    assert "loading" not in done.err.partition("training ")[2]
    monkeypatch.setattr(Loading, "on_start", begin)
    done = dgpo("train", write_run(run={"iterations": 2}), "--resume", "--quiet")
    assert (done.code, done.err) == (0, "")


def test_the_thread_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), working("dividing"):
        raise ZeroDivisionError
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_lines_name_what_is_counted() -> None:
    work = Work("rollout")
    assert work.line(5.4) == "rollout, 5 s so far"
    work.count(2, 8)
    assert work.line(65) == "rollout, 2/8, 65 s so far"
    work.say("optimize")
    assert work.line(66) == "optimize, 66 s so far"


def test_commands_tell_what_they_do(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that computes: what it says it does, and how much of it is done."""
    told: list[tuple[str, str]] = []
    say, count = Work.say, Work.count
    made = Work.__init__

    def start(work: Work, text: str) -> None:
        made(work, text)
        told.append((text, ""))

    def saying(work: Work, text: str) -> None:
        say(work, text)
        told.append((text, ""))

    def counting(work: Work, done: int, total: int) -> None:
        count(work, done, total)
        told.append((work.text, work.counted))

    for name, function in (("__init__", start), ("say", saying), ("count", counting)):
        monkeypatch.setattr(Work, name, function)
    run = str(trained.path)

    def of(*words: str) -> list[tuple[str, str]]:
        told.clear()
        done = dgpo(*words)
        assert done.code == 0, done.err
        return list(told)

    assert ("drawing", "8/8") in of("sample", run, "-p", "a", "-p", "b", "-n", "4", "-o", "drawn")
    assert [text for text, _ in of("export", run, "-o", "out")] == [f"loading {run}", "writing out"]
    assert (f"loading {run}", "") in of("evaluate", run)
    assert ("evaluate", "12/12") in told
    assert [text for text, _ in of("doctor", run)] == ["reading the logs"]
    assert [text for text, _ in of("compare", run)] == ["reading the runs", "comparing"]
    assert [text for text, _ in of("report", run)] == [f"reading {run}", f"writing {run}/report.html"]


def test_a_preset_belongs_to_a_run_file(dgpo: Run, tmp_path: Any) -> None:
    done = dgpo("evaluate", tmp_path, "--preset", "24gb")
    assert (done.code, done.out) == (2, "")
    assert "--preset belongs to a run file" in done.err


def test_retries_of_the_hub_are_announced_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the Hub's own client, for an address where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as where it is set
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
        announce_retries()
        announce_retries()  # as of the next program in this process
        logger = logging.getLogger("huggingface_hub.utils._http")
        logger.addHandler(caplog.handler)
        try:
            with pytest.raises(Exception, match="refused"):
                http_backoff("GET", f"http://{host}/model_index.json", max_retries=3, base_wait_time=0.0)
            logger.warning("something else")
        finally:
            logger.removeHandler(caplog.handler)
    shown = list(dict.fromkeys(caplog.messages))
    assert shown == [f"{host} does not answer; trying again for a while", "something else"]
