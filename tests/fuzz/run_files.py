"""Run files that are checked, small runs that are tried out, ablations."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from dgpo_kit.toy import run_data
from tests.fuzz.fuzzer import ROOT, Case, Subject, asked, toy_installed, workplace
from tests.fuzz.mutations import mutated

__all__ = ["RUN_FILES"]

PLACE = re.compile(
    r"case\.yaml(:\d+)?( \(.*\))?: |^[a-z_]+(\.[\w.-]+)*: |^(reward|objective|sampler|backbone|detector) '?\w"
    r"|examples/|experiments/|dry run: ",
    re.MULTILINE,
)
"""File and line, a key of the run file, a part, or a file that the run file names."""


@dataclass(frozen=True)
class Kind:
    """Documents of a kind and what they are given to, FILE in its place."""

    name: str
    command: list[str]
    documents: list[bytes]


def kinds() -> list[Kind]:
    """What is corrupted."""

    def read(*patterns: str) -> list[bytes]:
        return [path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern))]

    runs = read("examples/quickstart.yaml", "examples/mini*.yaml", "examples/sd35*.yaml", "examples/wan*.yaml")
    toys = [
        yaml.safe_dump(run_data("out", **changes), sort_keys=False).encode()
        for changes in (
            {},
            {"objective": {"kl": 0.02, "clip": 1e-3}, "weighting": {"use": "softmax"}},
            {"timesteps": {"use": "dsm-gap-t-min", "count": 2, "options": {"bins": 5}}},
            {"rollout": {"sampler": "flow-sde"}, "objective": {"use": "flow-grpo"},
             "timesteps": {"use": "sampler-steps"}, "evaluation": {"sampler": "flow-euler"}},
        )
    ]  # fmt: skip
    return [
        Kind("run file", ["validate", "FILE"], runs),
        Kind("small run", ["train", "FILE", "--dry-run"], toys),
        Kind("ablation", ["ablate", "FILE", "--dry-run"], read("examples/ablation-*.yaml", "experiments/e*.yaml")),
    ]


@contextmanager
def _opened() -> Iterator[Callable[[random.Random], Case]]:
    every = kinds()
    file = Path("case.yaml")

    def make(rng: random.Random) -> Case:
        kind = rng.choice(every)
        raw, names = mutated(rng, rng.choice(kind.documents))
        file.write_bytes(raw)
        listed = set(os.listdir())
        outcome, said = asked([word.replace("FILE", str(file)) for word in kind.command], PLACE)
        if left := set(os.listdir()) - listed:
            outcome = f"it left {left} behind"
        return Case(kind.name, ", ".join(names), outcome, said, raw.decode("utf-8", errors="backslashreplace"))

    with workplace(), toy_installed():
        yield make


RUN_FILES = Subject("run-files", _opened)
