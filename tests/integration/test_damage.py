"""Files that a disk or a hand has damaged: a resume comes to the same end, or says what is wrong."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dgpo_core.errors import UserError
from dgpo_core.registry import Registry
from dgpo_core.testing.toy import plugin, run_data
from dgpo_core.trainer import Trainer
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig

CASES = 120


class Whole:
    """A run half way, and what its end looks like."""

    def __init__(self, directory: Path) -> None:
        self.registry = Registry()
        self.registry.register(plugin, distribution="toy")
        self.directory = directory
        self.config = RunConfig.model_validate(
            run_data(directory / "work", evaluation={"every": 2, "prompts": 2, "pictures": 0}, checkpoints={"keep": 2})
        )
        self.run = directory / "work" / "toy"
        self.train(resume=False, most=3)
        shutil.copytree(self.run, directory / "half")
        self.train(resume=True)
        self.end = self.result()

    def train(self, *, resume: bool, most: int | None = None) -> str:
        return Trainer(self.config, self.registry).train(resume=resume, max_iterations=most)

    def restore(self) -> None:
        shutil.rmtree(self.run)
        shutil.copytree(self.directory / "half", self.run)

    def result(self) -> dict[str, bytes]:
        newest = sorted(p for p in (self.run / "checkpoints").iterdir() if p.name.isdecimal())[-1]
        return {f.name: f.read_bytes() for f in newest.iterdir() if f.name != "clock.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    made = Whole(tmp_path_factory.mktemp("damage"))
    assert made.result() == made.end
    return made


def damage(rng: random.Random, file: Path) -> str:
    raw = bytearray(file.read_bytes())
    how = rng.choice(["cut", "flip", "flip", "zero", "longer", "gone"])
    match how:
        case "cut":
            del raw[rng.randrange(len(raw)) :]
        case "flip":
            for _ in range(rng.choice([1, 1, 8])):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case "zero":
            start = rng.randrange(len(raw))
            raw[start : start + 64] = bytes(len(raw[start : start + 64]))
        case "longer":
            raw += rng.randbytes(rng.randrange(1, 50))
        case "gone":
            file.unlink()
            return how
    file.write_bytes(raw)
    return how


@pytest.mark.parametrize("where", ["newest checkpoint", "all checkpoints", "the rest"])
def test_damaged_files(where: str, whole: Whole) -> None:
    seen: Counter[str] = Counter()
    for case in range(CASES // 3):
        rng = random.Random(f"{where} {case}")
        whole.restore()
        saved = sorted((whole.run / "checkpoints").iterdir())
        chosen = {
            "newest checkpoint": [rng.choice(sorted(saved[-1].iterdir()))],
            "all checkpoints": [rng.choice(sorted(checkpoint.iterdir())) for checkpoint in saved],
            "the rest": [rng.choice([f for f in sorted(whole.run.iterdir()) if f.is_file() and f.name != ".lock"])],
        }[where]
        told = [f"{file.relative_to(whole.run)}: {damage(rng, file)}" for file in chosen]
        try:
            assert whole.train(resume=True) == "finished"
        except (UserError, ConfigError) as error:
            seen["refused" if str(whole.run) in str(error) else f"{told}: does not say where: {error}"] += 1
            continue
        same = {name: raw == whole.end[name] for name, raw in whole.result().items()}
        if where == "the rest":  # the manifest tells of the best evaluation, which is known from a log
            del same["manifest.json"]
        seen["the same" if all(same.values()) else f"{told}: another result"] += 1
    assert set(seen) <= {"the same", "refused"}
    assert seen["the same" if where != "all checkpoints" else "refused"] > CASES // 6, seen
