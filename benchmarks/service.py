"""Many clients of one reward service, for a minute: requests a second, errors, and how long an answer takes.

    python benchmarks/service.py [REWARD.yaml] [--clients 16] [--seconds 60] [--samples 4] [--url URL]

Starts `dgpo serve` with the reward file, or asks the service at --url. Each client sends the same samples again and
again (the reward's own examples, or noise) and compares every answer with its first. Exit status 1 if anything fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_remote.messages.blobs import Blob
from dgpo_remote.messages.scores import read_examples, read_score_answer, score_request
from dgpo_schemas.service import SAFETENSORS

EXAMPLE = Path(__file__).parent.parent / "examples" / "reward-service.yaml"


@contextmanager
def served(file: Path) -> Iterator[str]:
    """Start a service; yields its URL."""
    command = [sys.executable, "-m", "dgpo_cli", "serve", str(file), "--set", "port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        print(line, end="")  # noqa: T201
        if line.startswith("ready:"):
            url = line.split()[-1]
            break
    if not url:
        sys.exit(process.wait())
    drain = threading.Thread(target=lambda: [print(line, end="") for line in process.stderr or ()])  # noqa: T201
    drain.start()
    try:
        yield url
    finally:
        process.terminate()
        status = process.wait()
        drain.join()
        print(f"the service ended with status {status}")  # noqa: T201


def workload(url: str, count: int) -> tuple[Tensor, list[Prompt]]:
    """Return samples of one shape: the reward's examples, or noise."""
    examples = read_examples(Blob(httpx.get(f"{url}/v1/examples", timeout=60).raise_for_status().content))
    if not examples:
        return torch.rand(count, 3, 256, 256), [Prompt(f"image {i}") for i in range(count)]
    alike = [e for e in examples if e.media.shape == examples[0].media.shape]
    chosen = [alike[i % len(alike)] for i in range(count)]
    return torch.stack([e.media for e in chosen]), [e.prompt for e in chosen]


def hammer(url: str, body: bytes, stop: float) -> tuple[list[float], Counter[str]]:
    """Send requests until `stop`; return the seconds of each response, and counts of errors."""
    seconds: list[float] = []
    errors: Counter[str] = Counter()
    first = None
    headers = {"Content-Type": SAFETENSORS}
    with httpx.Client(base_url=url, timeout=60) as client:
        while time.monotonic() < stop:
            began = time.perf_counter()
            try:
                answer = client.post("/v1/score", content=body, headers=headers)
                if answer.status_code != 200:
                    errors[f"status {answer.status_code}"] += 1
                    continue
                values = read_score_answer(Blob(answer.content)).values
            except Exception as error:
                errors[type(error).__name__] += 1
                continue
            seconds.append(time.perf_counter() - began)
            first = values if first is None else first
            if not torch.allclose(values, first, rtol=1e-4, atol=1e-5, equal_nan=True):
                errors["another score than before"] += 1
    return seconds, errors


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=EXAMPLE, metavar="REWARD.yaml")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--url", help="ask this service instead of starting one")
    options = parser.parse_args()
    if options.url:
        return measure(options.url, options)
    with served(options.file) as url:
        return measure(url, options)


def measure(url: str, options: argparse.Namespace) -> int:
    """Run all clients concurrently; return the exit status."""
    media, prompts = workload(url, options.samples)
    body = score_request(media, prompts, alone=False)
    began = time.monotonic()
    with ThreadPoolExecutor(options.clients) as pool:
        done = list(pool.map(lambda _: hammer(url, body, began + options.seconds), range(options.clients)))
    elapsed = time.monotonic() - began
    seconds = sorted(second for times, _ in done for second in times)
    errors = sum((counted for _, counted in done), Counter[str]())
    shape = "x".join(map(str, media.shape))
    print(f"{options.clients} clients, {elapsed:.1f} s, media {shape} ({len(body) / 2**20:.2f} MiB a request)")  # noqa: T201
    print(f"{len(seconds)} answers: {len(seconds) / elapsed:.1f} requests/s, ", end="")  # noqa: T201
    print(f"{len(seconds) * options.samples / elapsed:.1f} samples/s")  # noqa: T201
    if seconds:
        p50, p99 = (seconds[min(len(seconds) - 1, int(q * len(seconds)))] for q in (0.5, 0.99))
        print(f"latency: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, longest {1000 * seconds[-1]:.1f} ms")  # noqa: T201
    print(f"errors: {dict(errors) or 'none'}")  # noqa: T201
    return 1 if errors or not seconds else 0


if __name__ == "__main__":
    sys.exit(main())
