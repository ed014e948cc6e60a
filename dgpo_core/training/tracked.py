"""What a run shows to its experiment trackers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dgpo_core.media.images import contact_sheet
from dgpo_core.storage.description import versions
from dgpo_core.tracking.several import Several, run_key
from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.metrics import evaluation_values, flat

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_core.types import ScoredGroups, TrainingBatch
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, PromptScores, TimingRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["DIRECTORY", "Trackers", "grouped"]

DIRECTORY = "trackers"
"""Of the trackers' own files, below the run directory."""
COLUMNS = ("reward", "role", "task", "score", "low", "high", "prompts")
PAIRS = 16
"""Maximum number of pairs on the sheet of samples before and after."""
COUNTERS = frozenset({"train/iteration", "time/iteration"})


def grouped(values: Mapping[str, float]) -> dict[str, float]:
    """Name numbers as trackers group them: "reward.mean" -> "reward/mean", and "kl" -> "train/kl"."""
    return {name.replace(".", "/", 1) if "." in name else f"train/{name}": value for name, value in values.items()}


class Trackers(Callback):
    """Shows configuration, numbers, distributions, samples and scores of tasks to the trackers of the run file.

    images: directory in which `Logs`, which comes first, has written the samples of an evaluation.
    """

    def __init__(self, config: RunConfig, registry: Registry, images: Path) -> None:
        self.config, self.registry, self.images = config, registry, images
        self.several = Several(config.logging.trackers)

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Start the trackers."""
        if not self.several:
            return
        where, section = directory / DIRECTORY, self.config.logging
        with self.several.preparing("the run"):
            self.several.start(
                TrackedRun(
                    name=self.config.run.name,
                    project=section.project,
                    directory=where,
                    key=run_key(where),
                    iteration=iteration,
                    tags=section.tags,
                    config=self.config.model_dump(mode="json"),
                    versions=versions(self.registry),
                )
            )

    def on_advantages(self, iteration: int, groups: ScoredGroups, batch: TrainingBatch) -> None:
        """Show the distributions of the rewards and of the advantages."""
        if self.several:
            for label, values in groups.per_reward.items():
                self.several.histogram(f"distributions/{label}", values[values.isfinite()].tolist(), iteration)
            self.several.histogram("distributions/advantages", batch.advantages[batch.scored].tolist(), iteration)

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Show metrics and timings."""
        values = grouped(flat(metrics)) | {f"time/{name}": value for name, value in flat(timing).items()}
        self.several.scalars({name: v for name, v in values.items() if name not in COUNTERS}, metrics.iteration)

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """Show the scores, also per task, and the samples, also beside those of the first evaluation."""
        iteration = scores.iteration
        self.several.scalars(grouped(evaluation_values(evaluation.records)), iteration)
        if not self.several:
            return
        self.several.table("evaluation/tasks", _tasks(evaluation.records), iteration)
        if evaluation.media:
            with self.several.preparing("the samples"):
                files = list(_files(self.images / f"{iteration:06d}"))
                self.several.media("samples", files, iteration)
                self.several.media("before-and-after", self._beside(files, iteration), iteration)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Finish."""
        self.several.finish(outcome.outcome)

    def _beside(self, files: Sequence[MediaFile], iteration: int) -> list[MediaFile]:
        """Make a sheet with the samples of the first evaluation left of these, or none where these are the first.

        Pairs have the same prompt and the same noise.
        """
        first = min((path for path in self.images.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        before = {(file.image.name, file.caption): file for file in _files(first)}
        pairs = [(before[key], file) for file in files if (key := (file.image.name, file.caption)) in before][:PAIRS]
        if not pairs or int(first.name) == iteration:
            return []
        sheet = contact_sheet([_opened(file.image) for pair in pairs for file in pair], 4 if len(pairs) > 1 else 2)
        path = self.images.parent / DIRECTORY / "before-and-after.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
        return [MediaFile(path, f"each pair: left after {int(first.name)} iterations, right after {iteration}")]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _files(directory: Path) -> Iterator[MediaFile]:
    """Yield the samples that `write_images` has written."""
    captions = json.loads((directory / "prompts.json").read_text(encoding="utf-8"))
    for i, caption in enumerate(captions):
        image, video = (directory / f"{i:02d}.{end}" for end in ("png", "mp4"))
        yield MediaFile(image, caption, video if video.is_file() else None)


def _tasks(records: Sequence[EvaluationRecord]) -> Table:
    """One row for each reward as a whole, and for each of its tasks and sources."""
    rows: list[tuple[str | float | None, ...]] = []
    for record in records:
        groups = {"all": record, **record.groups, **{f"source {name}": of for name, of in record.sources.items()}}
        rows += [
            (record.reward, record.role, task, float(of.value), of.low, of.high, of.n) for task, of in groups.items()
        ]
    return Table(COLUMNS, rows)
