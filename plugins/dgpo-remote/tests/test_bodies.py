"""Malformed bodies and hostile images."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from dgpo_remote.refusal import Refusal
from dgpo_remote.server.reader_main import MOST_SCANS
from dgpo_remote.server.readers import Readers, Reading
from dgpo_remote.server.uploads import read_form
from tests.uploaded import FORM, JSON, LIMITS, Serve, coded, file, form, one, png, read, readers, refused, run, scans

SLOW = scans(MOST_SCANS - 20, 4096)
"""A small valid image that takes about five seconds to decode."""


# -- malformed bodies -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (form(file(png()), end=b""), 400, "its last boundary, '--X--', is missing"),
        (form(file(png()), end=b"\r\n--X"), 400, "is missing"),
        (form(file(png())) + form(file(png())), 400, "data after '--X--'"),
        (form(file(png()), ('name="prompt"', b"a\r\n--X--b")), 400, "data after '--X--'"),
        (form(file(png())).replace(b"form-data; name", b"form-data; nom"), 400, "part 1 has no name"),
        (form(file(png())).replace(b"Content-Disposition", b"Content"), 400, "part 1 has no name"),
        (form(('name="image"\r\nContent-Type: multipart/mixed; boundary=Y', b"")), 400, "several files in one part"),
        (form(('name="image"', png())), 422, "`image` must be a file"),
        (form(file(png()), ('name="prompt"; filename="p.txt"', b"x")), 422, "-F 'prompt=<FILE'"),
        (form(file(png()), ('name="prompt"', b"\xff")), 400, "`prompt` is not UTF-8"),
        (form(file(png()), ('name="metadata"', b'{"a": 1, "a": 2}')), 400, "duplicate key 'a'"),
        (form(*[('name="prompt"', b"x")] * 10_000), 413, "a form of more than 3075 parts (limits.max_samples)"),
        (b"", 400, "is missing"),
        (b"x" + form(file(png())), 400, "a part before its first boundary"),
        (form(file(b"x"), end=b"").replace(b"\r\n", b"\n"), 400, "its last boundary, '--X--', is missing"),
        (form(file(b"x")).replace(b"\r\n", b"\n") * 2, 400, "data after '--X--'"),
    ],
)
def test_forms_that_are_refused(readers: Readers, body: bytes, status: int, message: str) -> None:
    error = refused(readers, body, FORM)
    assert (error.status, message in str(error)) == (status, True), error


@pytest.mark.parametrize("before", [b"", b"\r\n", b"This is a form.\r\n"])
@pytest.mark.parametrize("behind", [b"", b"bye\r\n"])
@pytest.mark.parametrize("folded", [b"", b"\r\n\t", b"\r\n "])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_all_variants_of_mime_forms_are_read(before: bytes, behind: bytes, folded: bytes, end: bytes) -> None:
    """A preamble, an epilogue, folded headers, and LF instead of CRLF."""
    made = form(file(b"MARK"), ('name="prompt"', b"a photo")).replace(b"form-data; ", b"form-data;" + (folded or b" "))
    made = (before + made + behind).replace(b"\r\n", end).replace(b"MARK", b"\r\n\n\r\0 \n x: y\r\n\r\n")
    found = read_form(made, FORM, 4)
    assert [one.content for one in found.images] == [b"\r\n\n\r\0 \n x: y\r\n\r\n"]
    assert [found.images[0].name, found.prompts] == ["image 'a.png'", ["a photo"]]


def test_no_part_of_a_form_is_lost() -> None:
    """For any content, all parts are read unchanged, or the form is refused."""
    pieces = [
        b"\r",
        b"\n",
        b"-",
        b"--X",
        b"\r\n--",
        b"\r\n--X",
        b"\r\n--X--",
        b"\r\n--XY",
        b"a",
        b"\xff",
        b" ",
        b"\r\n",
    ]
    rng, seen = random.Random(0), {True: 0, False: 0}
    for _ in range(1500):
        parts = [b"".join(rng.choices(pieces, k=rng.randrange(8))) for _ in range(rng.randrange(1, 4))]
        found = None
        with contextlib.suppress(Refusal):
            found = [image.content for image in read_form(form(*map(file, parts)), FORM, 8).images]
        assert found == parts or (found is None and any(b"\n--X" in b"\n" + part for part in parts))
        seen[found is None] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"samples": [{"image": "x", "image": "y"}]}', 400, "duplicate key 'image'"),
        (b'{"samples": [{"image": "x", "metadata": {"a": ' + b"9" * 5000 + b"}}]}", 400, "an integer of 5000 digits"),
        (b'{"samples": [{"image": "x", "metadata": ' + b'{"a":' * 80 + b"1" + b"}" * 80 + b"}]}", 422, "64 levels"),
        (b'{"samples": [{"image": "x", "metadata": {"a": [' + b"1," * 200_000 + b"1]}}]}", 413, "values"),
        (
            b'{"samples": [{"image": "x", "prompt": "a\\ud83d"}]}',
            422,
            "prompt 0 contains half of a character (the lone surrogate U+D83D, character 2)",
        ),
        (
            b'{"samples": [{"image": "x", "metadata": {"\\ud83d": 1}}]}',
            422,
            "metadata contains an invalid character (the lone surrogate U+D83D)",
        ),
        (b'{"samples": [{"image": "x", "promt": "y"}]}', 422, "samples.0.promt: unknown key; did you mean prompt?"),
        (b'{"samples": [{"image": "x", "prompt": "\xff"}]}', 400, "not JSON: invalid start byte at byte"),
        (b'{"samples": [' + b"1," * 2000 + b"1]}", 413, "2001 samples; at most 1024 are allowed"),
        (coded("x", prompt="a" * (17 * 2**20)), 413, "at most 16 MiB are allowed"),
        (b"[" * 100_000, 400, "too many levels"),
        (b"[" * 500_000, 413, "the body holds 500,000 lists and objects"),
    ],
)
def test_json_that_is_refused(readers: Readers, body: bytes, status: int, message: str) -> None:
    error = refused(readers, body)
    assert (error.status, message in str(error)) == (status, True), error


def test_memory_is_reserved_before_images_are_decoded(readers: Readers) -> None:
    sizes: list[int] = []

    def full(size: int) -> None:
        sizes.append(size)
        raise Refusal(503, "busy", "there is no room")

    before = readers.processes()
    with pytest.raises(Refusal, match="no room"):
        run(readers.read("json", "", coded(png(size=(100, 50)), b"x", SLOW), limits=LIMITS, reserve=full))
    assert sizes == [18 * (100 * 50 + 4096**2)]
    assert readers.processes() == before  # they are reused


# -- hostile images -----------------------------------------------------------------------------------------------
def test_an_image_that_takes_too_long_is_missing(one: Readers) -> None:
    before = one.processes()
    found = run(read(one, coded(png(), SLOW, png()), image_seconds=0.1))
    assert found.lost == {1: "reading it takes more than 0.1 s (limits.image_seconds)"}
    assert found.batches[0].places == [0, 2]
    assert not set(before) & set(one.processes())
    assert run(read(one, coded(png()))).lost == {}


async def at_work(task: asyncio.Task[Any], readers: Readers) -> int:
    """Return the process ID of the only process, once it is busy."""
    (pid,) = readers.processes()
    start = _seconds(pid)
    while not task.done() and _seconds(pid) < start + 0.1:
        await asyncio.sleep(0.02)
    assert not task.done()
    return pid


def _seconds(pid: int) -> float:
    reported = subprocess.run(["ps", "-o", "cputimes=" if sys.platform == "linux" else "time=", "-p", str(pid)],
                          capture_output=True, text=True, check=False).stdout  # fmt: skip
    if sys.platform != "linux":
        return float(reported.strip().rpartition(":")[2] or 0)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_killed_reader_loses_only_one_image(one: Readers) -> None:
    async def killing() -> Reading:
        await read(one, coded(png()))
        task = asyncio.create_task(one.read("json", "", coded(png(), SLOW, png()), limits=LIMITS))
        os.kill(await at_work(task, one), signal.SIGKILL)
        return await task

    found = run(killing())
    assert {place: str(why) for place, why in found.lost.items()} == {
        1: "its reader process was lost: it was killed by SIGKILL"
    }
    assert [pixels is None for pixels in found.pixels] == [False, True, False]


def test_readers_ignore_sigterm(one: Readers) -> None:
    """SIGTERM may be sent to all processes of a service: requests in progress still finish."""
    run(read(one, coded(png())))
    before = one.processes()
    os.kill(before[0], signal.SIGTERM)
    assert run(read(one, coded(png()))).lost == {}
    assert one.processes() == before


def test_a_request_cancelled_while_readers_start() -> None:
    made = Readers(1, LIMITS)

    async def cancelling() -> None:
        for pause in (0.0, 0.01, 0.1):
            task = asyncio.create_task(read(made, coded(png())))
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await read(made, coded(png()))).lost == {}

    try:
        run(cancelling())
    finally:
        made.close()


def test_an_idle_reader_that_dies_is_replaced(one: Readers) -> None:
    run(read(one, coded(png())))
    os.kill(one.processes()[0], signal.SIGKILL)
    assert run(read(one, coded(png()))).lost == {}


def test_a_cancelled_reading_is_stopped(one: Readers) -> None:
    async def cancelling() -> int:
        await read(one, coded(png()))
        task = asyncio.create_task(read(one, coded(SLOW)))
        pid = await at_work(task, one)
        waiting = asyncio.create_task(read(one, coded(png())))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await waiting).lost == {}
        return pid

    assert run(cancelling()) not in one.processes()
    assert run(read(one, coded(png()))).lost == {}


def test_cancelled_requests_free_their_slot(one: Readers) -> None:
    """Requests that are cancelled while they wait, before and after their turn."""

    async def cancelling() -> None:
        tasks = [asyncio.create_task(read(one, coded(png()))) for _ in range(8)]
        await asyncio.sleep(0)
        for task in tasks[1::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await read(one, coded(png()))).lost == {}

    run(cancelling())


def test_a_long_request_yields_to_a_small_one(one: Readers) -> None:
    async def both() -> list[str]:
        ended: list[str] = []

        async def ask(name: str, body: bytes) -> None:
            assert (await read(one, body)).lost == {}
            ended.append(name)

        await ask("warm", coded(png()))
        long = asyncio.create_task(ask("long", coded(*[scans(60, 1024)] * 5)))
        await at_work(long, one)
        await ask("small", coded(png()))
        await long
        return ended

    assert run(both()) == ["warm", "small", "long"]


def test_a_slow_image_does_not_delay_shutdown(serve: Serve) -> None:
    """An image is being read when the service is stopped."""
    server = serve("conv", drain_seconds=0.2, readers=1)

    def send() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{server.url}/v1/score", content=coded(*[SLOW] * 4), headers=JSON, timeout=20)

    sender = threading.Thread(target=send)
    sender.start()
    while server.service.inside == 0:
        time.sleep(0.01)
    pids = server.service.readers.processes()
    server.server.drain()
    server.thread.join(20)
    assert not server.thread.is_alive()
    sender.join(20)
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_readers_exit_with_their_service(tmp_path: Path) -> None:
    """Even if the service is killed."""
    code = (
        "import time; from dgpo_remote.server.readers import Readers\n"
        "from dgpo_schemas.service import ServiceLimits\n"
        "made = Readers(1, ServiceLimits()); made.start(); print(made.processes()[0], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        service.kill()
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if sys.platform == "linux" and ") Z" in Path(f"/proc/{pid}/stat").read_text():
            return  # nothing reaps it here
        time.sleep(0.02)
    raise AssertionError("the reader is still running")


def test_a_reader_sees_no_secrets_and_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpo_remote.server.reader_process import _environment

    monkeypatch.setenv("REWARD_TOKEN", "secret")
    assert "REWARD_TOKEN" not in _environment()
    done = subprocess.run(
        [sys.executable, "-c", "import sys, dgpo_remote.server.reader_main; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_a_reader_that_cannot_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("dgpo_remote.server.reader_process.MODULE", "dgpo_core.there_is_no_such_module")
    made = Readers(1, LIMITS)
    try:
        error = refused(made, coded(png()))
        assert (error.status, error.kind) == (503, "busy")
        assert "No module named dgpo_core.there_is_no_such_module" in caplog.text
    finally:
        made.close()
    assert refused(made, coded(png())).status == 503
