"""Saving checkpoints during a run and after failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dgpo_core.errors import DgpoError, PluginError, ProcessLostError, RunStopped, UserError
from dgpo_core.storage.store import RunStore
from dgpo_core.system.spelling import option
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.memory import TooLittleMemoryError
from dgpo_core.training.nonfinite import Standing
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.state import RunState

__all__ = ["Saver"]


class Saver:
    """Saves the state of a run to its store."""

    def __init__(self, run: TrainingRun, state: RunState, store: RunStore) -> None:
        self.run = run
        self.state = state
        self.store = store

    def save(self, *, alone: bool = False) -> None:
        """Write a checkpoint.

        All ranks must call this together, because weights may be sharded, unless `alone`: after a failure on this rank
        it does not wait for the others. Raises RunStopped if the weights are not finite; nothing is saved then.
        """
        state, optimizer = self.state, self.run.optimizer
        self.check_weights(alone=alone)
        with self.run.phases.timed("checkpoint"):
            self.store.save(
                iteration=state.iteration,
                updates=optimizer.updates,
                weights=self.run.policy.state(),
                optimizer=optimizer.state(),
                timesteps=state.timesteps,
                best=state.best_kept,
                counters=state.counters,
                trained_seconds=state.trained_seconds,
                spare=state.spare,
            )
        state.saved = state.iteration
        self.run.callbacks.on_checkpoint(state.iteration)

    def save_if_behind(self) -> None:
        """Save the state unless it is saved already."""
        if self.state.saved != self.state.iteration:
            self.save()

    def save_completed_iteration(self) -> str:
        """Save the state after the last iteration, after a failure on this rank; return a message about what is saved.

        This is possible if the next iteration has not updated the weights yet and the weights are not sharded, because
        other ranks may not take part.
        """
        possible = self.run.optimizer.updates == self.state.updates and not self.run.policy.weights_sharded
        if self.state.saved != self.state.iteration and possible:
            self.save(alone=True)
        saved = self.state.saved
        return f"the state after iteration {saved} is saved" if saved >= 0 else "nothing is saved yet"

    def prune(self) -> None:
        """Delete checkpoints that are no longer needed."""
        self.store.prune(self.state.best_kept, self.state.spare)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Context manager that saves the last complete iteration after a failure and reports it in the message."""
        try:
            yield
        except TooLittleMemoryError as error:
            raise TooLittleMemoryError(f"{error}; {self.save_completed_iteration()}") from error
        except ProcessLostError as error:
            raise ProcessLostError(
                f"{error}; {self.save_completed_iteration()}; continue with {option('resume', True)}"
            ) from error
        except PluginError as error:
            raise PluginError(f"{error}; {self.save_completed_iteration()}") from error
        except (DgpoError, KeyboardInterrupt, Interrupted):
            raise
        except BaseException as error:  # plugin code may even call `sys.exit`
            blamed = self.run.registry.blame(error)
            if blamed is None:
                raise
            raise RunStopped(
                f"{blamed}; {self.save_completed_iteration()}; continue with {option('resume', True)}"
            ) from error

    def check_weights(self, *, alone: bool = False) -> None:
        """Raise RunStopped if the last update made weights, averages or moments non-finite.

        Such a state is not saved, so the previous checkpoint stays the newest.
        """
        nonfinite = not self.run.optimizer.is_finite()
        if not (nonfinite if alone else self.run.runtime.processes.any(nonfinite)):
            return
        if self.run.optimizer.updates == 0:
            raise UserError(
                "backbone.checkpoint: its trained weights are not all finite, or too large to compute with; training "
                "cannot start from it"
            )
        raise RunStopped(self.standing().weights())

    def standing(self) -> Standing:
        """Collect what messages about corrupted weights need."""
        updates = self.run.optimizer.updates
        return Standing(
            iteration=self.state.iteration,
            updates=updates,
            saved=self.state.saved,
            rate=self.run.optimizer.learning_rate(max(updates - 1, 0)),
            clipped=self.run.config.optimizer.max_grad_norm is not None,
            last_update=self.state.last_update,
            checkpoints=self.store.checkpoint_paths(),
        )
