"""Synthetic run directories and a parser for the pages, for tests of `dgpo report`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dgpo_kit.toy import run_data
from dgpo_lab.reporting.data import Score
from dgpo_schemas.metrics import (
    EvaluationRecord,
    GroupScore,
    MetricsRecord,
    PhaseTiming,
    RewardStatistics,
    TimingRecord,
)
from dgpo_schemas.run import RunConfig

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
BEFORE = (0.81, 0.52, 0.41, 0.62, 0.24, 0.28)
AFTER = (0.97, 0.83, 0.66, 0.86, 0.55, 0.57)
PROMPTS = (
    "a photo of a red circle", "a photo of two squares", "a photo of a blue star right of a green triangle",
    "a drawing of three yellow circles", "a photo of a purple square and a white star", "a drawing of a black triangle",
)  # fmt: skip


def metrics_line(
    iteration: int, total: int, rewards: Sequence[str] = ("brightness",), **changes: Any
) -> dict[str, Any]:
    """One line of metrics.jsonl: curves with a little deterministic noise."""
    share, wave = iteration / total, math.sin(12.9898 * iteration) * 0.5 + math.sin(78.233 * iteration) * 0.5
    mean = 0.46 + 0.3 * (1 - math.exp(-3 * share)) + 0.02 * wave
    record = MetricsRecord(
        iteration=iteration, updates=iteration,
        reward=RewardStatistics(mean=mean, std=0.3 - 0.08 * share + 0.01 * wave, missing=0),
        rewards={name: RewardStatistics(mean=mean + 0.05 * i, std=0.2, missing=0) for i, name in enumerate(rewards)},
        zero_variance_groups=max(0, round(3 * share + wave)), missing_rewards=0, residual=0.02 + 0.005 * wave,
        sigmoid=0.5 + 0.04 * share + 0.01 * wave, clip_fraction=0.1 * share * (1 + 0.3 * wave),
        dsm=0.21 - 0.01 * share + 0.004 * wave, dsm_reference=0.211 + 0.004 * wave,
        kl=0.004 * share**0.5 * (1 + 0.1 * wave), extra={}, grad_norm=0.6 + 0.2 * wave, learning_rate=3e-4,
        skipped_updates=0, optimized_members=32, skipped_members=0, change_norm=1.4 * share**0.5,
        diversity=0.23 - 0.03 * share + 0.004 * wave,
        statistics={"saturation": 0.4 + 0.1 * share, "edge_density": 0.2 + 0.01 * wave, "dark_pixels": 0.05},
        t_min=0.3, t_max=1.0,
    )  # fmt: skip
    return record.model_dump(mode="json") | changes


def timing_line(iteration: int, evaluated: bool = False) -> dict[str, Any]:
    """One line of timings.jsonl: 10 seconds an iteration, of them 4 rollout, 1 waiting and 5 optimizing."""
    phases = {
        "rollout": (4.0, 4.0),
        "score": (2.0, 8.0),
        "wait_for_scores": (1.0, None),
        "compute_advantages": (0.01, None),
        "optimize": (4.99, 6.4),
    }
    if evaluated:
        phases |= {"evaluate": (7.0, 2.0), "checkpoint": (0.2, None)}
    return TimingRecord(
        iteration=iteration, seconds=10.0, peak_memory_bytes=3 * 2**30, rewards={"brightness": 2.0},
        phases={name: PhaseTiming(seconds=s, samples_per_second=rate) for name, (s, rate) in phases.items()},
    ).model_dump(mode="json")  # fmt: skip


def evaluation_line(
    iteration: int, share: float, reward: str = "brightness", tasks: Sequence[str] = TASKS, **changes: Any
) -> dict[str, Any]:
    """One line of evaluations.jsonl: from BEFORE to AFTER, each task with an interval of ± 0.08, the mean ± 0.04."""
    values = [b + share * (a - b) for b, a in zip(BEFORE, AFTER, strict=True)]
    mean = sum(values) / len(values)
    record = EvaluationRecord(
        iteration=iteration, model="ema", reward=reward, value=mean, low=mean - 0.04, high=mean + 0.04, n=120,
        role="target", missing=0,
        groups={
            t: GroupScore(value=v, low=v - 0.08, high=min(1, v + 0.08), n=20)
            for t, v in zip(tasks, values, strict=False)
        },
    )  # fmt: skip
    return record.model_dump(mode="json") | changes


def diversity_line(iteration: int, share: float) -> dict[str, Any]:
    """The record of a statistic: from 0.241 to 0.221."""
    value = 0.241 - 0.02 * share
    changes = {"value": value, "low": value - 0.03, "high": value + 0.03, "groups": {}}
    return evaluation_line(iteration, share, reward="diversity", role="statistic", **changes)


def write_images(run: Path, iteration: int, prompts: Sequence[str] = PROMPTS, size: tuple[int, int] = (32, 32)) -> None:
    """Images of an evaluation: a disc on a colored ground; later ones are sharper."""
    directory = run / "images" / f"{iteration:06d}"
    directory.mkdir(parents=True)
    y, x = np.mgrid[: size[1], : size[0]] / np.array(size[::-1]).reshape(2, 1, 1) - 0.5
    for i in range(len(prompts)):
        disc = 1 / (1 + np.exp((np.hypot(x - 0.1 * math.sin(i), y) - 0.25) * (12 if iteration == 0 else 80)))
        ground, ink = np.array([0.9, 0.9 - 0.08 * i, 0.85]), np.array([0.2 + 0.1 * i, 0.3, 0.9 - 0.12 * i])
        pixels = ground + disc[..., None] * (ink - ground)
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(directory / f"{i:02d}.png")
    Image.new("RGB", size).save(directory / "grid.png")
    (directory / "prompts.json").write_text(json.dumps(list(prompts)))


def write_lines(run: Path, log: str, lines: Sequence[dict[str, Any]]) -> None:
    """Write a log."""
    (run / log).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_config(run: Path, /, **changes: Any) -> None:
    """Write config.yaml only, as a run does."""
    run.mkdir(parents=True, exist_ok=True)
    config = RunConfig.model_validate(run_data(run.parent, **changes))
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_run(run: Path, /, iterations: int = 40, every: int = 10, **changes: Any) -> Path:
    """Write a complete run: 16 samples per iteration; an evaluation at the start and after `every` iterations each."""
    write_config(run, **({"run": {"name": run.name, "iterations": iterations}} | changes))
    numbers = range(1, iterations + 1)
    write_lines(run, "metrics.jsonl", [metrics_line(i, iterations) for i in numbers])
    write_lines(run, "timings.jsonl", [timing_line(i, i % every == 0) for i in numbers])
    moments = range(0, iterations + 1, every)
    lines = (f(i, i / iterations) for i in moments for f in (evaluation_line, diversity_line))
    write_lines(run, "evaluations.jsonl", list(lines))
    write_images(run, 0)
    write_images(run, iterations)
    record = {
        "command": ["dgpo", "train", "examples/quickstart.yaml"], "python": "3.11.2", "platform": "Linux-6.1-x86_64",
        "versions": {"dgpo": "0.1.0", "torch": "2.7.0", "diffusers": "0.35.1", "peft": "0.17.0"},
        "plugins": {"dgpo": "0.1.0", "dgpo-miniature": "0.1.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": False},
        "prompts": {"train": {"count": 600, "sha256": "a" * 64}, "heldout": {"count": 120, "sha256": "b" * 64}},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    return run


# -- helpers of the tests --------------------------------------------------------------------------------------------

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements with attributes and text; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.text += " ".join(data.split()) + " " if data.strip() else ""
        if "td" in self._open[-3:] or "th" in self._open[-3:]:
            self.rows[-1][-1] = (self.rows[-1][-1] + " " + data.strip()).strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def score(value: float, half: float | None = 0.04) -> Score:
    """A score with a symmetric interval, or none."""
    return Score(value, None, None, 10) if half is None else Score(value, value - half, value + half, 10)


def path_points(svg: str, color: str) -> np.ndarray[Any, Any]:
    """Points of the thickest path that is stroked in a color."""
    paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; stroke: {re.escape(color)}[^"]*"', svg)
    numbers = max((re.findall(r"-?[\d.]+", path) for path in paths), key=len)
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)
