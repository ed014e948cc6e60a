"""Gives spoilt files to the command line: each is accepted, or refused with a message that says where; nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import yaml

import dgpo_core.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.registry import Registry
from dgpo_core.testing.toy import plugin, run_data
from tests.fuzz.mutations import mutated

__all__ = ["Findings", "Kind", "kinds", "run"]

ROOT = Path(__file__).parents[2]
PLACE = re.compile(
    r"case\.yaml(:\d+)?( \(.*\))?: |^[a-z_]+(\.[\w.-]+)*: |^(reward|objective|sampler|backbone|detector) '?\w"
    r"|examples/|experiments/|dry run: ",
    re.MULTILINE,
)
"""File and line, a key of the run file, a part, or a file that the run file names."""
LONGEST = 20
"""Seconds after which a case counts as hanging."""


@dataclass(frozen=True)
class Kind:
    """Documents of a kind and what they are given to, FILE in its place."""

    name: str
    command: list[str]
    documents: list[bytes]


@dataclass
class Findings:
    """What came out: cases by kind and outcome, and the cases that nobody may see."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Hangs(Exception):
    """A case that takes too long."""


def kinds() -> list[Kind]:
    """Run files that are checked, small runs that are tried out, ablations, and files of other commands."""

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


def run(cases: int, seed: int) -> Iterator[Findings]:
    """Case after case; the same findings object, grown, after each."""
    findings, every = Findings(), kinds()
    before, installed = Path.cwd(), registry_module.get_registry
    known = Registry()
    known.register(plugin, distribution="toy")
    registry_module.get_registry = lambda: known  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name in ("examples", "experiments", "plugins"):  # what the documents refer to
            (Path(directory) / name).symlink_to(ROOT / name)
        try:
            for case in range(cases):
                rng = random.Random(f"{seed} {case}")
                kind = rng.choice(every)
                raw, names = mutated(rng, rng.choice(kind.documents))
                outcome, said = _outcome(kind, raw)
                findings.counts[kind.name, outcome if outcome in ("accepted", "refused") else "failed"] += 1
                if outcome not in ("accepted", "refused"):
                    shown = raw.decode("utf-8", errors="backslashreplace")
                    findings.failures.append(
                        f"case {case} of seed {seed}, {kind.name}, {', '.join(names)}: {outcome}\n{said}\n--- {shown}"
                    )
                yield findings
        finally:
            os.chdir(before)
            registry_module.get_registry = installed


def _outcome(kind: Kind, raw: bytes) -> tuple[str, str]:
    """(accepted, refused, or what is wrong; what was said)."""
    file = Path("case.yaml")
    file.write_bytes(raw)
    listed = set(os.listdir())
    out = io.StringIO()
    status: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), _time_limit():
            main([word.replace("FILE", str(file)) for word in kind.command])
    except SystemExit as end:
        status = end.code
    except Hangs:
        return f"hangs for more than {LONGEST} s", out.getvalue()
    except BaseException:
        return "a traceback", out.getvalue() + traceback.format_exc()
    said = out.getvalue()
    if set(os.listdir()) != listed:
        return "it left something behind", said + str(set(os.listdir()) - listed)
    if "Traceback" in said:
        return "a traceback", said
    if status in (0, None):
        return "accepted", said
    if status != 2:
        return f"exit code {status}", said
    if not said.strip():
        return "refused without a word", said
    if not PLACE.search(said):
        return "the message does not say where", said
    if len(said) > 20_000:
        return f"a message of {len(said)} characters", said
    return "refused", said


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hangs

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
