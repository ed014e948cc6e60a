"""Checkpoints of a run that goes on, and of one that fails: what is saved when, and what people are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dgpo_core.errors import DgpoError, PluginError, ProcessLostError, RunStopped, UserError
from dgpo_core.storage.store import RunStore
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.memory import TooLittleMemoryError
from dgpo_core.training.nonfinite import Standing
from dgpo_core.training.run import Run
from dgpo_core.training.state import RunState

__all__ = ["Saver"]


class Saver:
    """Saves a run's state in its store."""

    def __init__(self, run: Run, state: RunState, store: RunStore) -> None:
        self.run = run
        self.state = state
        self.store = store

    def save(self, *, alone: bool = False) -> None:
        """Write a checkpoint; by all processes together, for each may have a share of the weights, unless this one is
        `alone` with a failure: then it waits for no other. Raises RunStopped for weights that are not worth it."""
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
        """Unless the state is saved already."""
        if self.state.saved != self.state.iteration:
            self.save()

    def save_completed_iteration(self) -> str:
        """Save the state after the last iteration if no update of the next one has changed the weights since, and if
        this process alone has them, for the others may be elsewhere; what is saved, in words."""
        whole = self.run.optimizer.updates == self.state.updates and not self.run.policy.weights_sharded
        if self.state.saved != self.state.iteration and whole:
            self.save(alone=True)
        saved = self.state.saved
        return f"the state after iteration {saved} is saved" if saved >= 0 else "nothing is saved yet"

    def prune(self) -> None:
        """Drop checkpoints that are not needed any more."""
        self.store.prune(self.state.best_kept, self.state.spare)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Work that may fail: what can be saved then is, and the message says so."""
        try:
            yield
        except TooLittleMemoryError as error:
            raise TooLittleMemoryError(f"{error}; {self.save_completed_iteration()}") from error
        except ProcessLostError as error:
            raise ProcessLostError(f"{error}; {self.save_completed_iteration()}; continue with --resume") from error
        except PluginError as error:
            raise PluginError(f"{error}; {self.save_completed_iteration()}") from error
        except (DgpoError, KeyboardInterrupt, Interrupted):
            raise
        except BaseException as error:  # of a plugin, which may even have called `sys.exit`
            blamed = self.run.registry.blame(error)
            if blamed is None:
                raise
            raise RunStopped(f"{blamed}; {self.save_completed_iteration()}; continue with --resume") from error

    def check_weights(self, *, alone: bool = False) -> None:
        """Raise RunStopped if the last update has left weights, averages or moments that are no numbers to go on with:
        they are not saved, so that what was saved before stays the newest."""
        nonfinite = not self.run.optimizer.sound()
        if not (nonfinite if alone else self.run.runtime.processes.any(nonfinite)):
            return
        if self.run.optimizer.updates == 0:
            raise UserError(
                "backbone.checkpoint: its trained weights are not all finite, or too large to compute with; there is "
                "nothing to train from"
            )
        raise RunStopped(self.standing().weights())

    def standing(self) -> Standing:
        """For messages about weights that updates have corrupted."""
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
