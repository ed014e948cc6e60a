"""Flipped bits and lost ends in every file of a run's directory that is read again: none may be taken silently.

A toy run is stopped half way. One of its files is damaged; then it is resumed to its end, opened as `dgpo sample`,
`evaluate` and `export` open it, and read as `dgpo report` and `doctor` read it. Each of them must refuse in words that
name the place, tell of it and go on with what is whole, or come to what an undamaged run gives, byte for byte.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import dgpo_core.plugins.registry
from dgpo_core.api.target import open_target
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import Checkpoint, load
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Accepted, Trainer
from dgpo_core.types import Prompt
from dgpo_kit.toy import plugin, run_data
from dgpo_lab.reporting.data import read_run
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig

__all__ = ["KINDS", "Findings", "cut", "damage_at_random", "flip"]

STOPPED, END = 3, 4
READ_AGAIN = ("config.yaml", "run.json", "metrics.jsonl", "evaluations.jsonl", "timings.jsonl")


@dataclass
class Findings:
    """Damages by file and what became of them, and whatever was taken silently."""

    verdicts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A row a file."""
        names = ("refused", "told", "the same")
        rows = [f"{'file':<40} {'damages':>8} " + " ".join(f"{name:>9}" for name in names)]
        for file, found in sorted(self.verdicts.items()):
            rows.append(f"{file:<40} {found['damages']:>8} " + " ".join(f"{found[name]:>9}" for name in names))
        return "\n".join(rows)


class Notes(Callback):
    """What a run tells people."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, text: str) -> None:
        self.said.append(text)


class Watched(Trainer):
    """Keeps what was restored."""

    restored: Any = None

    def _restore(self, checkpoint: Checkpoint | None, accept: Collection[Accepted]) -> None:
        super()._restore(checkpoint, accept)
        state = self.state
        self.restored = (state.iteration, state.trained_seconds, list(state.evaluations), state.best)


class Half:
    """A run half way, and what becomes of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "work" / "toy"
        self.registry = Registry()
        self.registry.register(plugin, distribution="toy")
        self.config = RunConfig.model_validate(
            run_data(
                directory / "work",
                run={"iterations": END},
                rollout={"steps": 2, "group_size": 3, "groups": 2},
                evaluation={"every": 1, "prompts": 2, "images": 0, "model": "policy"},
                checkpoints={"every": 1, "keep": 3},
                stop={"seconds": 1e6},
            )
        )
        Trainer(self.config, self.registry).train(max_iterations=STOPPED)
        shutil.copytree(self.run, directory / "half")

    def files(self) -> list[Path]:
        """Those that are read again, below the run's directory."""
        saved = sorted(self.directory.glob("half/checkpoints/*/*"))
        return [Path(name) for name in READ_AGAIN] + [file.relative_to(self.directory / "half") for file in saved]

    def restore(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.directory / "half", self.run)

    def resumed(self, notes: list[str]) -> Any:
        """What was restored, and the end: weights, moments, manifest, logs."""
        progress = Notes()
        trainer = Watched(self.config, self.registry, callbacks=[progress])
        try:
            trainer.train(resume=True)
        finally:
            notes += progress.said
        newest = self.run / "checkpoints" / f"{END:06d}"
        load(newest)
        files = [newest / name for name in ("weights.safetensors", "optimizer.safetensors", "manifest.json")]
        files += [self.run / name for name in ("metrics.jsonl", "evaluations.jsonl")]
        timings = (self.run / "timings.jsonl").read_text().splitlines()[:STOPPED]
        return trainer.restored, timings, [file.read_bytes() for file in files]

    def opened(self, notes: list[str], checkpoint: str) -> Any:
        """What `sample` and `evaluate` draw and `export` writes."""
        target = open_target(self.run, checkpoint=checkpoint, on_message=notes.append)
        engine = target.engine
        try:
            (drawn,) = engine.rollout_sampler().sample_groups(
                [Prompt("an image")], 1, Draws(0).at("sample"), target.model
            )
            shutil.rmtree(self.directory / "adapter", ignore_errors=True)
            with engine.policy.activate(target.model):
                assert engine.backbone.adapter is not None
                engine.backbone.adapter.save(self.directory / "adapter", "toy")
        finally:
            engine.close()
        exported = [file.read_bytes() for file in sorted((self.directory / "adapter").iterdir())]
        values = [prompt.text for prompt in engine.load_prompts("heldout")]
        return target.label, drawn.x0.numpy().tobytes(), exported, values

    def reported(self, notes: list[str]) -> Any:
        """What `report` and `doctor` read."""
        data = read_run(self.run, self.registry)
        notes += data.problems
        return data.config, data.metrics, data.timings, data.evaluations, data.statistics, data.record


@contextmanager
def _warnings(notes: list[str]) -> Iterator[None]:
    """What the log says, as a person sees it."""

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler, logger = Keeping(), logging.getLogger("dgpo_core")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def flip(rng: random.Random, raw: bytes) -> bytes:
    """One bit."""
    changed = bytearray(raw)
    changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, raw: bytes) -> bytes:
    """The end is gone; half of the time from the end of a line on, where nothing looks odd."""
    ends = [place + 1 for place, byte in enumerate(raw[:-1]) if byte == 10]
    return raw[: rng.choice(ends)] if ends and rng.random() < 0.5 else raw[: rng.randrange(len(raw))]


def zero(rng: random.Random, raw: bytes) -> bytes:
    """A lost block."""
    start = rng.randrange(len(raw))
    return raw[:start] + bytes(len(raw[start : start + 64])) + raw[start + 64 :]


def longer(rng: random.Random, raw: bytes) -> bytes:
    """Something at the end that does not belong there."""
    return raw + rng.randbytes(rng.randrange(1, 50))


How = Callable[[random.Random, bytes], bytes]
KINDS: tuple[How, ...] = (flip, cut, zero, longer)


def damage_at_random(hows: Sequence[How], seed: int, directory: Path) -> Iterator[Findings]:
    """One damage after the other, spread evenly over the files; findings grow with each."""
    half, found, rng = Half(directory), Findings(), random.Random(seed)
    files = half.files()
    with (
        patch.object(dgpo_core.plugins.registry, "get_registry", lambda: half.registry),
        torch.random.fork_rng(devices=[]),
    ):
        wanted: dict[str, Any] = {}
        for number, how in enumerate(hows):
            file = files[number % len(files)]
            which = str(int(file.parts[1])) if len(file.parts) > 1 else "newest"
            actions: dict[str, Callable[[list[str]], Any]] = {
                "report": half.reported,
                f"open {which}": lambda notes, which=which: half.opened(notes, which),
                "resume": half.resumed,
            }
            for name, act in actions.items():
                if name not in wanted:
                    half.restore()
                    wanted[name] = act([])
            half.restore()
            raw = (half.run / file).read_bytes()
            (half.run / file).write_bytes(how(rng, raw))
            row = found.verdicts[str(file)]
            row["damages"] += 1
            for name, act in actions.items():
                verdict = _verdict(half, act, wanted[name])
                row[verdict] += verdict in ("refused", "told", "the same")
                if verdict not in ("refused", "told", "the same"):
                    found.failures.append(f"{name}, case {number}, {how.__name__} in {file}: {verdict}")
            yield found


def _verdict(half: Half, act: Callable[[list[str]], Any], wanted: Any) -> str:
    notes: list[str] = []
    try:
        with _warnings(notes):
            result = act(notes)
    except (UserError, ConfigError) as error:
        return "refused" if str(half.run) in str(error) else f"does not say where: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if result == wanted:
        return "the same"
    return "told" if notes else f"taken silently: {json.dumps(repr(result))[:300]}"
