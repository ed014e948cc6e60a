"""Standard streams that go away: commands end in a word or in silence, and runs go on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from dgpo_cli.console import PlainProgress, RichProgress
from dgpo_cli.main import main
from dgpo_cli.streams import guarded_errors, guarded_output, unheeded_output
from dgpo_schemas.metrics import OutcomeRecord

Write = Callable[..., Path]


@contextmanager
def broken(kind: str) -> Iterator[IO[str]]:
    """A text stream that takes nothing, as the system's own are."""
    if kind == "closed":
        stream: IO[str] = io.StringIO()
        stream.close()
        yield stream
        return
    if kind == "full":
        handle = os.open("/dev/full", os.O_WRONLY)
    else:
        hear, handle = os.pipe()
        os.close(hear)
    stream = os.fdopen(handle, "w", encoding="utf-8", buffering=1)
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):
            stream.close()


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("command", ["plugins list", "--help", "--version", "validate RUN", "schema"])
def test_a_full_disk_below_standard_output_is_reported(
    command: str, write_run: Write, known: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = write_run()
    with broken("full") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert ended(*command.replace("RUN", str(file)).split()) == 2
        assert sys.stdout is stream
    assert capsys.readouterr().err.endswith("cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("command", ["plugins list", "--help", "--version"])
def test_a_reader_that_is_gone_ends_a_command_in_silence(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with broken("pipe") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert ended(*command.split()) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["pipe", "full", "closed", "none"])
def test_a_run_goes_on_without_a_terminal(
    kind: str, write_run: Write, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(run={"iterations": 2})
    with broken("pipe" if kind == "none" else kind) as stream:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, None if kind == "none" else stream)
        assert ended("train", str(file)) == 0
    assert json.loads(Path("runs/toy/outcome.json").read_text())["outcome"] == "finished"


def test_the_interpreter_has_nothing_to_complain_of_at_its_end() -> None:
    """Of what it would flush then: as a process of its own, whose pipes are real."""
    program = textwrap.dedent("""
        import sys
        from dgpo_cli.main import guarded
        def work():
            for _ in range(100_000):
                sys.stdout.write("a line\\n")
        guarded(work)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert started.stdout.readline() == "a line\n"
        started.stdout.close()
        assert started.stderr.read() == ""
        assert started.wait() == 141
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program.replace("100_000", "1")], stdout=full, stderr=full)
    assert done.returncode == 2


def test_closed_streams_are_not_taken_by_the_next_file(tmp_path: Path) -> None:
    """What a library prints to descriptor 1 must not get into a log."""
    program = textwrap.dedent("""
        import os, sys
        from dgpo_cli.main import guarded
        def work():
            with open("log", "w") as file:
                assert file.fileno() > 2
                print("lost")
                os.write(1, b"lost")
                os.write(2, b"lost")
                print("lost", file=sys.stderr)
        guarded(work)
    """)
    command = f"exec {sys.executable} -c '{program}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert (tmp_path / "log").read_text() == ""


# -- standard error -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "full", "closed"])
def test_nothing_that_is_said_on_the_way_can_fail(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither lines nor bars, or logs, whose handlers would print tracebacks of their own."""
    from rich.console import Console

    with broken(kind) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with guarded_errors():
            PlainProgress().on_message("x")
            bars = RichProgress(Console(stderr=True, force_terminal=True))
            bars.bars.start()
            bars.on_progress("rollout", 1, 2)
            bars.on_message("x")
            bars.on_end(OutcomeRecord(outcome="finished", iteration=1, ended_by=None))
            logging.StreamHandler().emit(logging.makeLogRecord({"msg": "x"}))
            sys.stderr.writelines(["x", "y"])
            assert not sys.stderr.isatty()
        assert sys.stderr is stream


def test_a_write_that_a_signal_finds_under_way_is_left_out() -> None:
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    before, sys.stderr = sys.stderr, Busy()
    try:
        with guarded_errors():
            assert sys.stderr.write("stopping") == 8
    finally:
        sys.stderr = before


# -- characters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "errors", "shown"),
    [
        ("ascii", "strict", b"\\xe4 \\u732b \\U0001f408 \\udcff"),
        ("latin-1", "strict", b"\xe4 \\u732b \\U0001f408 \\udcff"),
        ("utf-8", "strict", "ä 猫 🐈 \\udcff".encode()),
        ("utf-8", "surrogateescape", "ä 猫 🐈 ".encode() + b"\xff"),
        ("ascii", "surrogateescape", b"\\xe4 \\u732b \\U0001f408 \\udcff"),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_an_encoding_does_not_have_stands_as_its_escape(
    name: str, encoding: str, errors: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors=errors))
    with guarded_errors(), guarded_output():
        print("ä 猫 🐈 \udcff", end="", file=getattr(sys, name))
    assert raw.getvalue() == shown


@pytest.mark.parametrize("kind", ["pipe", "full", "closed"])
def test_a_run_may_print_into_the_void(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what is left in a buffer end it afterwards."""
    with broken(kind) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with guarded_output(), unheeded_output():
            sys.stdout.write("a plugin's word")
            if kind != "closed":
                sys.stdout.buffer.write(b"x")
                sys.stdout.buffer.flush()


def test_an_output_that_a_plugin_has_closed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with broken("closed") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert ended("--version") == 2
    assert capsys.readouterr().err == "cannot write to standard output: it is closed\n"


@pytest.mark.parametrize(("columns", "wanted"), [("0", None), ("00", None), ("", None), ("60", "60"), ("x", "x")])
def test_a_terminal_of_no_columns(columns: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert ended("--version") == 0
    assert os.environ.get("COLUMNS") == wanted


# -- what the system refuses ----------------------------------------------------------------------------------------


def test_what_the_system_refuses_is_a_sentence(
    write_run: Write, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    """Also a broken pipe that is not standard output's, of which Typer would say nothing."""
    assert ended("report", "a" * 300) == 2
    assert "File name too long (OSError at " in capsys.readouterr().err

    def lost(*_: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("dgpo_schemas.loading.load_yaml", lost)
    monkeypatch.setattr("dgpo_core.config.reading.load_yaml", lost)
    assert ended("validate", str(write_run())) == 2
    assert capsys.readouterr().err.startswith("Broken pipe (BrokenPipeError at ")


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert ended("report", "runs/toy") == 2
    assert capsys.readouterr().err == "the working directory no longer exists; change to another one\n"
