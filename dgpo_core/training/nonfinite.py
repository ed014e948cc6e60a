"""Messages for non-finite weights and media: the responsible update, what to lower, and which checkpoint to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_core.system.spelling import option

__all__ = ["Standing"]


@dataclass(frozen=True)
class Standing:
    """The progress of a run and its checkpoints.

    iteration, updates: numbers finished so far; saved: the iteration of the newest checkpoint; rate: learning rate of
    the last update; clipped: whether optimizer.max_grad_norm is set; last_update: the iteration of the last update that
    was not skipped; checkpoints: checkpoint directories, oldest first.
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
        """The iteration of the newest checkpoint before the last update."""
        return max((int(path.name) for path in self.checkpoints if int(path.name) < self.last_update), default=None)

    def after_skipping(self) -> str:
        """Advice if the weights are the reason why updates are skipped; empty without an older checkpoint."""
        if self.before is None:
            return ""
        return (
            f". If the run stops again at once, the update of iteration {self.last_update} has corrupted the weights: "
            f"the checkpoint of iteration {self.before} is kept too; move later ones away to resume from it"
        )

    def weights(self) -> str:
        """The message for an update that made the weights non-finite."""
        return (
            f"in iteration {self.iteration + 1} update {self.updates}, with a learning rate of {self.rate:g}, made "
            "weights that are not finite, or too large to compute with: they are not saved. Lower "
            f"optimizer.learning_rate (a resume may change it){self._and_max_norm('set ')}; the checkpoint of "
            f"iteration {self.saved} is kept, and {option('resume', True)} continues from it"
        )

    def media(self, media: str) -> str:
        """The message for media that are not finite although the weights are; `media` names them, in the plural.

        The weights may be saved already: the checkpoint before is kept until samples were drawn with the new weights.
        """
        if self.updates == 0:
            return (
                f"{media} are not finite, with the base model's weights: check backbone.dtype, precision and "
                "rollout.guidance"
            )
        problem = (
            f"{media} are not finite: {self.updates} {'update' if self.updates == 1 else 'updates'}, the last with a "
            f"learning rate of {self.rate:g}, have corrupted the weights. "
        )
        lower = f"a lower optimizer.learning_rate{self._and_max_norm()}"
        if self.saved != self.iteration:
            return (
                f"{problem}They are not saved: the checkpoint of iteration {self.saved} is kept; resume from it with "
                f"{lower}"
            )
        if self.before is None:
            return f"{problem}There is no earlier checkpoint; start again with another run.name and {lower}"
        return (
            f"{problem}The checkpoint of iteration {self.before} is kept: move {self.checkpoints[-1]} away and resume "
            f"with {lower}"
        )

    def _and_max_norm(self, prefix: str = "") -> str:
        return "" if self.clipped else f" and {prefix}optimizer.max_grad_norm, which is null"
