"""SIGKILL at random moments of a run, again and again, until it is done: the end must be the same, byte for byte.

Moments are what happens in a process (the n-th forward pass, score, file write, rename, half-written line,
collective) or a time. Runs are forked from a process that has imported everything (tests/integration/driver.py), so
that hundreds of them take minutes.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dgpo_kit.toy import run_data

__all__ = ["Findings", "kill_at_random"]

DRIVER = Path(__file__).parents[1] / "integration" / "driver.py"
ITERATIONS = 6
MOST_LIVES = 60
"""A run that has not ended by then never will."""


@dataclass
class Findings:
    """Kills by moment, lives, and whatever should not be."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    failures: list[str] = field(default_factory=list)


class Lives:
    """Runs of one file, in some number of processes."""

    def __init__(self, directory: Path, processes: int) -> None:
        self.directory = directory
        self.processes = processes
        self.driver = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.run = directory / "toy"
        self.file = directory / "toy.yaml"
        self.file.write_text(
            yaml.safe_dump(
                run_data(
                    directory,
                    run={"iterations": ITERATIONS, "process_timeout": 60},
                    rollout={"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 4},
                    timesteps={"use": "dsm-gap-t-min", "count": 1, "t_min": 0.1,
                               "options": {"every": 2, "samples": 2, "bins": 3}},
                    objective={"ema_rollouts_after": 2},
                    evaluation={"every": 2, "prompts": 3, "images": 2, "model": "policy"},
                    checkpoints={"every": 2, "keep": 1},
                )
            )
        )  # fmt: skip

    def live(self, *, victim: int = 0, at: tuple[str, int] | None = None) -> list[dict[str, Any]]:
        """One life: from the newest checkpoint, or from the start, to the end or to a kill."""
        saved = any(p.name.isdecimal() for p in (self.run / "checkpoints").glob("*"))
        if not saved and (self.run / "metrics.jsonl").exists():
            shutil.rmtree(self.run)  # logs without a checkpoint, which the run says to remove
        arguments = ["train", str(self.file), *(["--resume"] if saved else [])]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        requests = []
        for rank in range(self.processes):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes, "MASTER_ADDR": "127.0.0.1",
                     "LOCAL_WORLD_SIZE": self.processes, "MASTER_PORT": port}  # fmt: skip
            environment = {k: str(v) for k, v in names.items()} if self.processes > 1 else {}
            requests.append({"arguments": arguments, "environment": environment, "at": at if rank == victim else None})
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(json.dumps({"together": requests}) + "\n")
        self.driver.stdin.flush()
        ended: list[dict[str, Any]] = json.loads(self.driver.stdout.readline())["ended"]
        return ended

    def end(self) -> dict[str, bytes]:
        """What is the same however often the run was killed."""
        newest = sorted(p for p in (self.run / "checkpoints").iterdir() if p.name.isdecimal())[-1]
        scores = sorted((self.run / "scores").iterdir())
        saved = [file for file in sorted(newest.iterdir()) if file.name != "clock.json"]
        named = [self.run / "metrics.jsonl", self.run / "evaluations.jsonl", *saved, *scores]
        return {str(file.relative_to(self.run)): file.read_bytes() for file in named}

    def close(self) -> None:
        for stream in (self.driver.stdin, self.driver.stdout):
            assert stream is not None
            stream.close()
        self.driver.wait()


def _has_noticed(one: dict[str, Any]) -> bool:
    """Whether a process ended as it should when another one was killed: perhaps before they had met."""
    return one["status"] in (0, 3) or (one["status"] == 2 and "cannot connect at" in one["output"])


def kill_at_random(kills: int, seed: int, directory: Path, processes: int = 1) -> Iterator[Findings]:
    """Until so many kills have hit; findings grow with each run that has come to its end."""
    found, rng = Findings(), random.Random(f"{seed} {processes}")
    lives = Lives(directory, processes)
    try:
        whole = lives.live(at=("never", 1))
        counts: dict[str, int] = whole[0]["counts"]
        wanted = lives.end()
        milliseconds = 900
        while found.kills.total() < kills and len(found.failures) < 3:
            shutil.rmtree(lives.run)
            known = len(found.failures)
            for life in range(MOST_LIVES):
                moment = rng.choice(sorted(counts)) if rng.random() < 0.75 else "clock"
                n = rng.randint(1, max(1, counts[moment])) if moment != "clock" else rng.randint(1, milliseconds)
                victim = rng.randrange(processes)
                # Always killed a few times; then it may come to its end.
                ended = lives.live(victim=victim, at=(moment, n) if life < 12 else None)
                statuses = [one["status"] for one in ended]
                if statuses[victim] == -signal.SIGKILL:
                    found.kills[moment] += 1
                    odd = [one for i, one in enumerate(ended) if i != victim and not _has_noticed(one)]
                elif statuses == [0] * processes:
                    break
                else:
                    odd = ended
                said = "\n".join(f"{one['status']}: {one['output']}" for one in odd)
                if odd or "Traceback" in said:
                    found.failures.append(f"{moment} {n} in process {victim}: {said}")
                    break
            else:
                found.failures.append(f"no end after {MOST_LIVES} lives")
            # A run that was given up has no end to compare, perhaps not even a checkpoint.
            if len(found.failures) == known and lives.end() != wanted:
                found.failures.append(f"another result, last killed at {moment} {n}")
            found.runs += 1
            yield found
    finally:
        lives.close()
