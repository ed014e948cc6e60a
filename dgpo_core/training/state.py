"""The progress of a run: everything except tensors that a resume must restore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.system.stopping import Limit, limit_reached

if TYPE_CHECKING:
    from dgpo_core.training.optimizer import UpdateResult
    from dgpo_schemas.manifest import CheckpointManifest
    from dgpo_schemas.run import RunConfig

__all__ = ["RunState"]


@dataclass
class RunState:
    """The progress of a run of `config`, the same on all ranks.

    iteration: number of finished iterations; updates, timesteps: optimizer updates, and the timestep policy's state,
    after these iterations (without later measurements, because a resumed iteration measures again); trained_seconds:
    duration of these iterations without evaluations and checkpoints; best: (iteration, score) of the best evaluation;
    saved, evaluated: iterations of the last checkpoint and evaluation; drawn: the last iteration whose weights drew
    media that can be scored; evaluations: the records of evaluations.jsonl; otherwise, monitors_changed: up to these
    iterations evaluations, or their monitors, are not comparable with later ones; had_ended: whether the run had
    already ended when it was started.
    """

    config: RunConfig
    iteration: int = 0
    updates: int = 0
    timesteps: Mapping[str, Any] = field(default_factory=dict)
    trained_seconds: float = 0.0
    best: tuple[int, float] | None = None
    saved: int = -1
    evaluated: int = -1
    drawn: int = -1
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    otherwise: int = -1
    monitors_changed: int = -1
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    had_ended: bool = False

    @property
    def ended_by(self) -> Literal["iterations"] | Limit | None:
        """Why the run has ended, if it has: its last iteration, or a limit of the `stop` section."""
        if self.iteration >= self.config.run.iterations:
            return "iterations"
        rollout, stop = self.config.rollout, self.config.stop
        return limit_reached(
            stop,
            seconds=self.trained_seconds,
            samples=self.iteration * rollout.groups * rollout.group_size,
            evaluations=self.evaluations_after(self.otherwise),
        )

    def evaluations_after(self, iteration: int) -> list[dict[str, Any]]:
        """Return the evaluation records after an iteration."""
        return [record for record in self.evaluations if record["iteration"] > iteration]

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation is due now and has not run yet."""
        section, done = self.config.evaluation, self.iteration
        if self.config.prompts.heldout is None or self.evaluated == done:
            return False
        if done == 0:
            return section.at_start
        return self.ended_by is not None or (section.every > 0 and done % section.every == 0)

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after this iteration, saved or not."""
        return self.iteration % self.config.checkpoints.every == 0 or self.ended_by is not None

    @property
    def best_kept(self) -> tuple[int, float] | None:
        """The best evaluation, if checkpoints.best is set."""
        return self.best if self.config.checkpoints.best else None

    @property
    def spare(self) -> int | None:
        """The iteration before which the newest checkpoint is kept, because nothing was drawn with later weights yet,
        or all later updates were skipped; None otherwise."""
        return self.last_update if self.skipped_in_a_row or self.drawn < self.iteration else None

    @property
    def last_update(self) -> int:
        """The iteration of the last update that was not skipped.

        If later updates are skipped because of it, the weights before it are the last good ones.
        """
        return self.iteration - self.skipped_in_a_row // self.config.optimizer.updates_per_iteration

    @property
    def counters(self) -> dict[str, int]:
        """The counters in a checkpoint manifest."""
        return {"skipped_updates": self.skipped_updates, "skipped_in_a_row": self.skipped_in_a_row}

    def count_skipped(self, results: Iterable[UpdateResult]) -> None:
        """Count the skipped updates of an iteration."""
        for result in results:
            self.skipped_updates += result.skipped
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0

    def add_evaluation(self, records: Sequence[dict[str, Any]]) -> bool:
        """Add the records of an evaluation; return whether its first reward has the best value so far."""
        self.evaluations += records
        return self._compare(records[0])

    def _compare(self, record: Mapping[str, Any]) -> bool:
        self.evaluated = record["iteration"]
        improved = self._improves(record["iteration"], record["value"])
        if improved:
            self.best = (record["iteration"], record["value"])
        return improved

    def _improves(self, iteration: int, score: float) -> bool:
        """Return whether a score is the best so far; the first comparable score replaces one that is not comparable."""
        if self.best is None:
            return True
        comparable, best_comparable = iteration > self.otherwise, self.best[0] > self.otherwise
        return score > self.best[1] if comparable == best_comparable else comparable

    def restore(self, manifest: CheckpointManifest, memory: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint; memory: values from the logs and run.json (`RunDirectory.recall`)."""
        self.iteration = self.saved = manifest.iteration
        self.skipped_updates = manifest.counters.get("skipped_updates", 0)
        self.skipped_in_a_row = manifest.counters.get("skipped_in_a_row", 0)
        self.trained_seconds, self.evaluations = memory["seconds"], memory["evaluations"]
        self.otherwise, self.monitors_changed = memory["otherwise"], memory["monitors_changed"]
        if manifest.best_iteration is not None and manifest.best_score is not None:
            self.best = (manifest.best_iteration, manifest.best_score)
        for record in self.evaluations:  # the log may have evaluations that are newer than the checkpoint
            if record["iteration"] > self.evaluated:
                self._compare(record)
