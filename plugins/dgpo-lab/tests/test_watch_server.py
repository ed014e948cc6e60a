"""The server of `dgpo watch`, asked over HTTP: what it answers, to whom, and what it refuses; and the command."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from dgpo_core.errors import UserError
from dgpo_lab.watching import diagnosing
from dgpo_lab.watching.access import Access, make_access
from dgpo_lab.watching.diagnosing import Doctor, examine
from dgpo_lab.watching.discovery import Watched
from dgpo_lab.watching.server import PageServer
from tests.doctored import Run, Written
from tests.reported import write_run

OPEN = Access(local=True, names=frozenset(), token=None)
TOKEN = "a-token-of-the-tests"


@contextmanager
def serving(path: Path, access: Access = OPEN, host: str = "127.0.0.1") -> Iterator[PageServer]:
    """A server on a thread, on a free port."""
    with PageServer(Watched([path]), access, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    """Return status, body and headers. Header names are given with _ for -."""
    connection = http.client.HTTPConnection(server.server_name, server.server_port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def data(server: PageServer, path: str, **query: Any) -> Any:
    status, body, headers = ask(server, f"{path}?{urlencode(query)}")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    return json.loads(body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "quickstart", 6, 3)
    Written(n=4, outcome="failed").write(runs / "failed")
    with serving(runs) as found:
        yield found


# -- answers ---------------------------------------------------------------------------------------------------------


def test_the_page_is_sent_and_asks_nobody_else(server: PageServer) -> None:
    text = ""
    for path, kind in (("/", "text/html"), ("/watch.css", "text/css"), ("/watch.js", "text/javascript"),
                       ("/figures.js", "text/javascript"), ("/logs.js", "text/javascript")):  # fmt: skip
        status, body, headers = ask(server, path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        text += body.decode()
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text


def test_runs_and_their_logs_are_answered(server: PageServer) -> None:
    listed = data(server, "/api/runs")
    assert [(run["id"], run["state"]) for run in listed["runs"]] == [("failed", "failed"), ("quickstart", "finished")]
    found = data(server, "/api/changes", id="quickstart")
    assert (found["metrics"]["rows"], found["timings"]["rows"], found["images"]) == (6, 6, [0, 6])
    again = data(server, "/api/changes", id="quickstart", metrics=found["metrics"]["cursor"])
    assert (again["metrics"]["rows"], again["timings"]["rows"]) == (0, 6)
    keys = {key for panel in data(server, "/api/panels") for key in panel["columns"].values()}
    assert {"kl", "sigmoid", "grad_norm"} <= keys <= set(found["metrics"]["columns"])
    samples = data(server, "/api/samples", id="quickstart", iteration=6)["samples"]
    status, body, headers = ask(server, "/media?id=quickstart&iteration=6&index=0")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    run = server.watched.run("quickstart")
    assert run is not None
    assert body == (run / "images" / "000006" / "00.png").read_bytes()
    assert samples[0]["prompt"] == "a photo of a red circle"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/../watch.py", "/watch.js/..", "/page/index.html", "/api", "/api/changes?id=..",
        "/api/changes?id=../runs/failed", "/api/changes?id=/etc", "/api/changes", "/api/samples?id=failed",
        "/api/samples?id=failed&iteration=../1", "/media?id=failed&iteration=0&index=0",
        "/media?id=quickstart&iteration=6&index=0&kind=json", "/media?id=quickstart&iteration=6&index=00/../../x",
        "/media?id=quickstart&iteration=%D9%A6&index=0", "/api/changes?id=quickstart%00",
    ],
)  # fmt: skip
def test_what_is_not_listed_is_not_found(server: PageServer, path: str) -> None:
    status, body, _ = ask(server, path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_server_is_read_only(server: PageServer, method: str) -> None:
    status, _, headers = ask(server, "/api/runs", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_no_body(server: PageServer) -> None:
    status, body, headers = ask(server, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_watching_changes_no_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4, 2)
    (run / ".lock").touch()
    before = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in tmp_path.rglob("*")}
    with serving(run) as server:
        for path in ("/api/runs", "/api/changes?id=run", "/api/samples?id=run&iteration=0", "/api/doctor?id=run"):
            assert ask(server, path)[0] == 200
        wait_for_doctor(server.doctor, run)
    after = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in tmp_path.rglob("*")}
    assert after == before


def test_a_log_that_cannot_be_read_is_a_fault_not_an_error(tmp_path: Path) -> None:
    run = Written(n=2).write(tmp_path / "run")
    (run / "timings.jsonl").unlink()
    os.mkfifo(run / "timings.jsonl")
    with serving(run) as server:
        found = data(server, "/api/changes", id="run")
        assert found == {"fault": f"{run}/timings.jsonl: cannot be read: is a FIFO, not a file"}


# -- who may look ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "[::1]:80", "LOCALHOST", "127.9.9.9:1"])
def test_names_of_this_machine_are_accepted(server: PageServer, host: str) -> None:
    assert ask(server, "/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8787", "192.168.0.7", "", "[", "127.0.0.1.x"])
def test_other_names_are_refused(server: PageServer, host: str) -> None:
    """DNS rebinding: a page of another site whose name was made to lead here."""
    status, body, _ = ask(server, "/api/runs", Host=host)
    assert status == 421
    assert b"--allow-host" in body


def test_names_on_a_network() -> None:
    access = make_access("0.0.0.0", ["Proxy.example"], None)
    for host in ("10.0.0.4:8787", "[fe80::1]", "proxy.example", f"{socket.gethostname()}:80", "localhost"):
        assert access.is_ours(host)
    for host in ("evil.example", "proxy.example.evil", f"{socket.gethostname()}.evil.example"):
        assert not access.is_ours(host)


def test_a_token_is_made_for_a_network_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {make_access("0.0.0.0", (), None).token for _ in range(20)}
    assert len(tokens) == 20
    assert all(token and len(token) == 32 for token in tokens)
    assert make_access("127.0.0.1", (), None).token is None
    monkeypatch.setenv("MINE", TOKEN)
    assert make_access("localhost", (), "MINE").token == TOKEN
    for value, message in (("", "MINE is not set"), ("short", "at least 16"), ("with a space in it; ok", "ASCII")):
        monkeypatch.setenv("MINE", value)
        with pytest.raises(UserError, match=message) as refused:
            make_access("0.0.0.0", (), "MINE")
        assert not value or value not in str(refused.value)


def test_the_token_opens_once_then_the_cookie(tmp_path: Path) -> None:
    run = Written(n=2).write(tmp_path / "run")
    with serving(run, Access(local=False, names=frozenset(), token=TOKEN)) as server:
        for path in ("/", "/watch.js", "/api/runs", "/media?id=run&iteration=0&index=0", "/nothing",
                     f"/api/runs?token={TOKEN}"):  # fmt: skip
            assert ask(server, path)[0] == 401
        for wrong in ("x", TOKEN + "x", TOKEN[:-1], "%ff%00", "ä"):
            assert ask(server, "/?token=" + urlencode({"": wrong})[1:])[0] == 403
        status, _, headers = ask(server, f"/?token={TOKEN}")
        assert (status, headers["Location"]) == (303, "/")
        cookie, *about = headers["Set-Cookie"].split("; ")
        assert cookie == f"dgpo-watch-{server.server_port}={TOKEN}"
        assert about == ["HttpOnly", "SameSite=Strict", "Path=/"]
        assert ask(server, "/api/runs", Cookie=f"other=1; {cookie}")[0] == 200
        assert ask(server, "/", Cookie=cookie)[0] == 200
        assert ask(server, "/api/runs", Authorization=f"Bearer {TOKEN}")[0] == 200
        for wrong in (cookie[:-1], f"dgpo-watch-1={TOKEN}", "dgpo-watch", ";;=\x7f"):
            assert ask(server, "/api/runs", Cookie=wrong)[0] == 401
        assert ask(server, "/api/runs", Authorization=f"Basic {TOKEN}")[0] == 401
        assert ask(server, f"/?token={TOKEN}", Host="evil.example")[0] == 421


# -- the doctor ------------------------------------------------------------------------------------------------------


def wait_for_doctor(doctor: Doctor, run: Path) -> Any:
    end = time.monotonic() + 60
    while (answer := doctor.ask(run)) == {"pending": True}:
        assert time.monotonic() < end
        time.sleep(0.01)
    return answer


def test_the_doctor_is_asked_again_only_when_a_run_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "PAUSE", 0.0)
    run = Written(n=3).write(tmp_path / "run")
    examined: list[int] = []

    def examine(run: Path) -> dict[str, Any]:
        examined.append(len((run / "metrics.jsonl").read_bytes().splitlines()))
        if len(examined) == 2:
            raise UserError("ill")
        return {"lines": examined[-1]}

    doctor = Doctor(examine)
    assert wait_for_doctor(doctor, run) == {"lines": 3}
    for _ in range(5):
        doctor.ask(run)
    assert examined == [3]
    with (run / "metrics.jsonl").open("a") as log:
        log.write("{}\n")
    for expected in ({"fault": "ill"}, {"lines": 5}):
        end = time.monotonic() + 60
        while doctor.ask(run) != expected:
            assert time.monotonic() < end
            time.sleep(0.01)
        with (run / "metrics.jsonl").open("a") as log:
            log.write("{}\n")


def test_the_doctor_finds_what_the_command_finds(dgpo: Run, tmp_path: Path) -> None:
    sick = Written(config={"timesteps": {"t_min": 0.0}}).write(tmp_path / "sick")
    (printed,) = json.loads(dgpo("doctor", sick, "--json").out)
    answer = json.loads(json.dumps(examine(sick)))
    assert {key: answer[key] for key in printed} == printed
    assert answer["summary"] == "1 problem, no warnings, no notes"
    assert answer["trial"].startswith(f"dgpo train {sick}/config.yaml --set run.name=sick-2")


# -- the command -----------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line(dgpo: Run, tmp_path: Path) -> None:
    run = Written(n=2).write(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ((tmp_path / "nowhere",), f"{tmp_path}/nowhere: no such run directory, and no directory of runs"),
            ((run / "run.json",), "is a file, not a run directory"),
            ((run, "--port", port), f"--port {port}: is in use on 127.0.0.1; choose another port, or --port 0"),
            ((run, "--host", "203.0.113.9", "--port", 0), "--host 203.0.113.9: is not an address of this machine"),
            ((run, "--token-variable", "NOT_SET_HERE"), "the environment variable NOT_SET_HERE is not set"),
        ):
            done = dgpo("watch", *arguments)
            assert (done.code, done.out) == (2, "")
            assert len(done.err.splitlines()) == 1
            assert message in done.err


def test_help_teaches(dgpo: Run) -> None:
    done = dgpo("watch", "--help")
    text = " ".join(done.out.split())
    for part in ("dgpo watch runs/quickstart --open", "ssh -L", "takes no lock", "--host", "--port", "--open"):
        assert part in text


def test_command_is_light_to_import() -> None:
    """The server starts without torch and numpy; only the doctor needs them."""
    heavy = ("torch", "numpy", "matplotlib", "jinja2")
    code = f"import sys, dgpo_lab.watching.server; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """`started(run)`: a `dgpo watch` in a process of its own, and the address that it prints."""
    processes = []

    def start(*arguments: str | Path) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "dgpo_cli", "watch", *map(str, arguments), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_quietly(started: Callable[..., tuple[subprocess.Popen[str], str]], tmp_path: Path) -> None:
    process, url = started(Written(n=2).write(tmp_path / "run"))
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)
    assert match is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=30)
    connection.request("GET", "/api/runs")
    assert json.loads(connection.getresponse().read())["runs"][0]["id"] == "run"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    connection.close()
    assert (process.returncode, out) == (0, "")
    assert err.strip() == "watching 1 run; Ctrl-C ends"
