"""What a run has done so far, and what follows from it: all that a resume has to find again besides tensors."""

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
    """Of a run of `config`; the same in every process.

    iteration: iterations finished; updates, timesteps: optimizer updates, and the timestep policy's state, after those
    (a stop after a measurement must not save that too, since the resumed iteration measures again); trained_seconds: of
    those iterations, without evaluations and checkpoints; best: (iteration, score) of the best evaluation; saved,
    evaluated: iterations of the last checkpoint and evaluation; drawn: the last iteration whose weights have drawn
    media that can be scored; evaluations: what evaluations.jsonl says; otherwise, guards_otherwise: up to these
    iterations evaluations, and their monitors, measured something else than after them; had_ended: when it was started,
    so that nothing was left to train.
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
        """The end that the run has reached, if any: its last iteration, or a limit of `stop`."""
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
        """Records of evaluations that may be compared: a resume may have changed what is measured."""
        return [record for record in self.evaluations if record["iteration"] > iteration]

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation belongs here that has not been made."""
        section, done = self.config.evaluation, self.iteration
        if self.config.prompts.heldout is None or self.evaluated == done:
            return False
        if done == 0:
            return section.at_start
        return self.ended_by is not None or (section.every > 0 and done % section.every == 0)

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint belongs here, saved or not."""
        return self.iteration % self.config.checkpoints.every == 0 or self.ended_by is not None

    @property
    def best_kept(self) -> tuple[int, float] | None:
        """The best evaluation, if its checkpoint is to be kept."""
        return self.best if self.config.checkpoints.best else None

    @property
    def spare(self) -> int | None:
        """The newest checkpoint before this iteration stays: nothing has been drawn with the weights of later ones, or
        all updates from them on were skipped."""
        return self.last_update if self.skipped_in_a_row or self.drawn < self.iteration else None

    @property
    def last_update(self) -> int:
        """The iteration of the last update that was not skipped: if it is why all later ones were, the weights from
        before it are what is worth keeping."""
        return self.iteration - self.skipped_in_a_row // self.config.optimizer.updates

    @property
    def counters(self) -> dict[str, int]:
        """What a manifest counts."""
        return {"skipped_updates": self.skipped_updates, "skipped_in_a_row": self.skipped_in_a_row}

    def count_skipped(self, results: Iterable[UpdateResult]) -> None:
        """After the updates of an iteration."""
        for result in results:
            self.skipped_updates += result.skipped
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0

    def add_evaluation(self, records: Sequence[dict[str, Any]]) -> bool:
        """The records of one evaluation, whose first reward decides; True if that is better than ever before."""
        self.evaluations += records
        return self._compare(records[0])

    def _compare(self, record: Mapping[str, Any]) -> bool:
        self.evaluated = record["iteration"]
        improved = self._improves(record["iteration"], record["value"])
        if improved:
            self.best = (record["iteration"], record["value"])
        return improved

    def _improves(self, iteration: int, score: float) -> bool:
        """Whether a score is the best so far; one of another measure stands until there is one of this."""
        if self.best is None:
            return True
        now, then = iteration > self.otherwise, self.best[0] > self.otherwise
        return score > self.best[1] if now == then else now

    def restore(self, manifest: CheckpointManifest, memory: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; memory: what logs and run.json say besides (`RunDirectory.recall`)."""
        self.iteration = self.saved = manifest.iteration
        self.skipped_updates = manifest.counters.get("skipped_updates", 0)
        self.skipped_in_a_row = manifest.counters.get("skipped_in_a_row", 0)
        self.trained_seconds, self.evaluations = memory["seconds"], memory["evaluations"]
        self.otherwise, self.monitors_changed = memory["otherwise"], memory["monitors_changed"]
        if manifest.best_iteration is not None and manifest.best_score is not None:
            self.best = (manifest.best_iteration, manifest.best_score)
        for record in self.evaluations:  # the log is written before a checkpoint could tell of it
            if record["iteration"] > self.evaluated:
                self._compare(record)
