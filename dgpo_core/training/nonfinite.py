"""What a run says when updates have corrupted its weights: which one, what to lower, which checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_core.system.spelling import option

__all__ = ["Standing"]


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    iteration, updates: done so far; saved: the iteration of the newest checkpoint; rate: the learning rate of the last
    update; clipped: whether optimizer.max_grad_norm is set; last_update: the iteration of the last update that was not
    skipped; checkpoints: their directories, oldest first.
    """

    iteration: int
    updates: int
    saved: int
    rate: float
    clipped: bool
    last_update: int
    checkpoints: Sequence[Path]

    @property
    def before(self) -> int | None:
        """The newest checkpoint from before the last update."""
        return max((int(path.name) for path in self.checkpoints if int(path.name) < self.last_update), default=None)

    def after_skipping(self) -> str:
        """What to do if the weights themselves are why updates are skipped; nothing if no checkpoint is older."""
        if self.before is None:
            return ""
        return (
            f". If it stops again at once, the update of iteration {self.last_update} has corrupted the weights: the "
            f"checkpoint of iteration {self.before} is kept too, and is resumed from once later ones are moved away"
        )

    def weights(self) -> str:
        """The last update has made weights that are no numbers."""
        return (
            f"in iteration {self.iteration + 1} update {self.updates}, with a learning rate of {self.rate:g}, made "
            "weights that are not finite, or too large to compute with: they are not saved. Lower "
            f"optimizer.learning_rate (a resume may change it){self._and_a_norm('set ')}; the checkpoint of iteration "
            f"{self.saved} is kept, and {option('resume', True)} goes on from it"
        )

    def media(self, what: str) -> str:
        """`what`, such as media of an iteration, is not finite though the weights are. They may be saved already: the
        checkpoint before is kept until a checkpoint's weights have drawn something."""
        if self.updates == 0:
            return (
                f"{what} are not finite, with the base model's own weights: look at backbone.dtype, precision and "
                "rollout.guidance"
            )
        said = (
            f"{what} are not finite: {self.updates} {'update' if self.updates == 1 else 'updates'}, the last with a "
            f"learning rate of {self.rate:g}, have corrupted the weights. "
        )
        lower = f"a lower optimizer.learning_rate{self._and_a_norm()}"
        if self.saved != self.iteration:
            return (
                f"{said}They are not saved: the checkpoint of iteration {self.saved} is kept, and a resume with "
                f"{lower} goes on from it"
            )
        if self.before is None:
            return f"{said}There is no checkpoint from before; begin again, with another run.name and {lower}"
        return (
            f"{said}The checkpoint of iteration {self.before} is kept: move {self.checkpoints[-1]} away, and a resume "
            f"with {lower} goes on from there"
        )

    def _and_a_norm(self, phase: str = "") -> str:
        return "" if self.clipped else f" and {phase}optimizer.max_grad_norm, which is null"
