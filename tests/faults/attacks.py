"""Attacks on a reward service, and what its other callers see meanwhile: `python -m tests.faults --service`.

While an attack runs, a process of its own asks /health again and again. Afterwards a sound request is sent, and the
memory in which the service and its processes reside is read all along.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults import hostile
from tests.faults.serving import Served, exchange, resident, served

__all__ = ["ATTACKS", "Attack", "Seen", "attack", "attack_service", "attacks", "end_under_attack"]

CALLERS = 8
"""Connections of an attack at a time, unless it says otherwise."""


@dataclass(frozen=True)
class Attack:
    """send: one hostile request on a connection, until `stop`; returns when it was answered, refused or cut off."""

    name: str
    send: Callable[[Served, random.Random, threading.Event], None]
    callers: int = CALLERS


@dataclass
class Seen:
    """What came of an attack: milliseconds of /health (median, 99th of 100, worst), hostile requests, the most memory
    in MiB, and the seconds that a sound request took afterwards (None: no sound answer)."""

    name: str
    health: tuple[float, float, float] = (0.0, 0.0, 0.0)
    asked: int = 0
    requests: int = 0
    memory: float = 0.0
    sound: float | None = None
    notes: list[str] = field(default_factory=list)

    def row(self) -> str:
        """For a table."""
        sound = "none" if self.sound is None else f"{self.sound:.2f}"
        half, high, worst = self.health
        return (
            f"{self.name:<22} {self.requests:>8} {half:>8.1f} {high:>8.1f} {worst:>8.1f} {self.memory:>9.0f} {sound:>7}"
            + "".join(f"  {note}" for note in self.notes)
        )


HEAD = f"{'attack':<22} {'requests':>8} {'health':>8} {'p99 ms':>8} {'worst':>8} {'MiB':>9} {'sound s':>7}"


# -- kinds of attack ------------------------------------------------------------------------------------------------


def _bodies(make: Callable[[], list[bytes] | bytes]) -> Callable[[Served, random.Random, threading.Event], None]:
    """Whole requests, whose answers are read."""
    made: list[bytes] = []
    lock = threading.Lock()

    def send(service: Served, rng: random.Random, stop: threading.Event) -> None:
        with lock:
            if not made:
                found = make()
                made.extend(found if isinstance(found, list) else [found])
        exchange(service.address, rng.choice(made), seconds=60)

    return send


def _slowly(start: Callable[[random.Random], bytes], drip: bytes) -> Callable[..., None]:
    """The beginning of a request, and then a byte now and again, until the service has enough of it."""

    def send(service: Served, rng: random.Random, stop: threading.Event) -> None:
        with socket.create_connection(service.address, timeout=5) as connection:
            connection.sendall(start(rng))
            connection.settimeout(0.2)
            while not stop.is_set():
                connection.sendall(drip)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(65536):
                        return

    return send


def _half_a_head(rng: random.Random) -> bytes:
    whole = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nX-" + b"y" * 40
    return whole[: rng.randrange(len(whole))]


def _a_promise(rng: random.Random) -> bytes:
    kind = rng.choice(["application/json", "multipart/form-data; boundary=x", "application/x-safetensors"])
    return (
        f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {rng.choice([1000, 200 << 20])}\r\n\r\n"
    ).encode()


def _chunks(rng: random.Random) -> bytes:
    return (
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


def _never_reads(service: Served, rng: random.Random, stop: threading.Event) -> None:
    """Asks and asks on one connection, and takes no answer."""
    with socket.create_connection(service.address, timeout=1) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200
        with contextlib.suppress(TimeoutError):
            while not stop.is_set():
                connection.sendall(asked)
        stop.wait(3)


def _comes_and_goes(service: Served, rng: random.Random, stop: threading.Event) -> None:
    """Connections that say nothing, or go away in the middle."""
    with socket.create_connection(service.address, timeout=5) as connection:
        raw = hostile.sound()
        connection.sendall(raw[: rng.choice([0, 10, 200, len(raw) - 1, len(raw)])])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _goes_away(make: Callable[[], bytes]) -> Callable[..., None]:
    """A whole expensive request, whose caller does not wait."""
    made = make()

    def send(service: Served, rng: random.Random, stop: threading.Event) -> None:
        with socket.create_connection(service.address, timeout=20) as connection:
            connection.sendall(made)
            stop.wait(0.2)

    return send


def attacks() -> list[Attack]:
    """All of them; the large ones are made when they are first sent."""
    return [
        Attack("half heads", _slowly(_half_a_head, b"z"), 400),
        Attack("slow bodies", _slowly(_a_promise, b" "), 100),
        Attack("endless chunks", _slowly(_chunks, b"1\r\n \r\n"), 60),
        Attack("answers not read", _never_reads, 30),
        Attack("connect and leave", _comes_and_goes, 40),
        Attack("tiny chunks", _bodies(hostile.tiny_chunks)),
        Attack("trailers", _bodies(hostile.trailers)),
        Attack("many headers", _bodies(hostile.many_headers)),
        Attack("nested JSON", _bodies(hostile.nested_json)),
        Attack("many prompts", _bodies(hostile.many_prompts)),
        Attack("long header", _bodies(hostile.long_header)),
        Attack("deep JSON", _bodies(hostile.deep_json)),
        Attack("many parts", _bodies(hostile.many_parts)),
        Attack("many scans", _bodies(hostile.many_scans)),
        Attack("scans, gone", _goes_away(hostile.many_scans)),
        Attack("bombs", _bodies(hostile.bombs)),
        Attack("giants", _bodies(hostile.giants)),
        Attack("broken tensors", _bodies(hostile.broken_tensors)),
        Attack("sound, many", _bodies(hostile.sound), 24),
    ]


ATTACKS = [one.name for one in attacks()]


# -- what others see ------------------------------------------------------------------------------------------------

PROBE = """
import json, socket, sys, time
port, spent = int(sys.argv[1]), []
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    started = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as c:
            c.sendall(b"GET /health HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n")
            data = b""
            while piece := c.recv(4096):
                data += piece
        good = data.startswith(b"HTTP/1.1 200") and b"alive" in data
    except OSError:
        good = False
    spent.append((time.perf_counter() - started) * 1000 if good else 10_000.0)
    time.sleep(0.01)
print(json.dumps(spent), flush=True)
"""


@contextmanager
def _probing(service: Served, seconds: float, seen: Seen) -> Iterator[None]:
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(service.port), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert probe.stdout is not None
    probe.stdout.readline()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.memory = max(seen.memory, resident(service.process.pid) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        spent = sorted(json.loads(probe.stdout.readline() or "[10000.0]"))
        seen.asked = len(spent)
        seen.health = (spent[len(spent) // 2], spent[int(len(spent) * 0.99)], spent[-1])
        probe.stdout.close()
        probe.wait()
        done.set()
        watcher.join()


def attack(service: Served, chosen: Attack, seconds: float, seed: int = 0) -> Seen:
    """Attack for so long; what others saw."""
    seen, stop, lock = Seen(chosen.name), threading.Event(), threading.Lock()

    def call(number: int) -> None:
        rng = random.Random(f"{seed} {chosen.name} {number}")
        while not stop.is_set():
            with contextlib.suppress(OSError):
                chosen.send(service, rng, stop)
            with lock:
                seen.requests += 1
            time.sleep(0.005)

    callers = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(chosen.callers)]
    with _probing(service, seconds, seen):
        for caller in callers:
            caller.start()
        time.sleep(seconds)
        stop.set()
    started = time.perf_counter()
    seen.sound = _sound(service, started)
    if (status := service.process.poll()) is not None:
        seen.notes.append(f"the service ended with {status}")
    if "Traceback" in service.said():
        seen.notes.append("a traceback")
    for caller in callers:
        caller.join(30)
    return seen


def _sound(service: Served, started: float, patience: float = 30.0) -> float | None:
    """Seconds until a sound request has its score; callers that are told to come back do."""
    while time.perf_counter() - started < patience:
        with contextlib.suppress(OSError, ValueError, KeyError):
            answer = exchange(service.address, hostile.sound(), seconds=patience)
            if answer.status == 200 and json.loads(answer.body)["values"] == [0.0]:
                return time.perf_counter() - started
        time.sleep(0.02)
    return None


def end_under_attack(chosen: Attack, drain: float = 2.0, **settings: Any) -> tuple[float, int | None]:
    """(seconds from SIGTERM to the end, exit status) of a service under attack."""
    with served(drain_seconds=drain, **settings) as service:
        stop = threading.Event()

        def call(number: int) -> None:
            rng = random.Random(number)
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    chosen.send(service, rng, stop)
                time.sleep(0.005)

        callers = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(chosen.callers)]
        for caller in callers:
            caller.start()
        time.sleep(1.5)
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        try:
            status: int | None = service.process.wait(drain + 20)
        except subprocess.TimeoutExpired:
            status = None
        spent = time.monotonic() - started
        stop.set()
        for caller in callers:
            caller.join(5)
        return spent, status


MOST_HEALTH = 100.0
"""Milliseconds of /health, the 99th of 100, under attack."""
MOST_SOUND = 1.0
"""Seconds in which a sound request is answered after an attack."""
MEMORY = 2048
"""MiB that requests may take in the long run (`memory_mib`); the processes at rest come to that."""
DRAIN = 2.0


def attack_service(seconds: float, names: list[str], seed: int, on_message: Callable[[str], object]) -> int:
    """Every attack on one service, a table of what others saw, and the end of a service under each; the exit status."""
    chosen = [one for one in attacks() if one.name in names]
    failures: list[str] = []
    with served(memory_mib=MEMORY) as service:
        rest = resident(service.process.pid) / 2**20
        bound, total, most = rest + MEMORY, 0, 0.0
        on_message(f"{HEAD}\n")
        for one in chosen:
            seen = attack(service, one, seconds, seed)
            on_message(f"{seen.row()}\n")
            total, most = total + seen.requests, max(most, seen.memory)
            if seen.health[1] > MOST_HEALTH:
                failures.append(f"{one.name}: /health took {seen.health[1]:.0f} ms")
            if seen.sound is None or seen.sound > MOST_SOUND:
                failures.append(f"{one.name}: a sound request was not answered within {MOST_SOUND:g} s")
            failures += [f"{one.name}: {note}" for note in seen.notes]
        on_message(f"{total} hostile requests; {rest:.0f} MiB at rest, at most {most:.0f} MiB, bound {bound:.0f} MiB\n")
        if most > bound:
            failures.append(f"{most:.0f} MiB are more than {bound:.0f} MiB")
    for one in chosen:
        spent, status = end_under_attack(one, DRAIN, memory_mib=MEMORY)
        on_message(f"SIGTERM under {one.name}: ended after {spent:.1f} s with status {status}\n")
        if status != 0 or spent > DRAIN + 2:
            failures.append(f"{one.name}: SIGTERM took {spent:.1f} s, status {status}")
    on_message("".join(f"{failure}\n" for failure in failures))
    return int(bool(failures))
