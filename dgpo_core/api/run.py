"""The `Run` object: train, resume, sample, evaluate, export and read a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.api.calls import (
    Overrides,
    check_accept,
    check_callbacks,
    check_format,
    checked_guidance,
    checked_seed,
    from_python,
    path_of,
    positive,
    settings_of,
    sides_of,
)
from dgpo_core.errors import RunStopped, UserError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from dgpo_core.api.evaluating import EvaluationResult
    from dgpo_core.api.models import Model
    from dgpo_core.api.samples import Samples
    from dgpo_core.api.target import Target
    from dgpo_core.config.presets import Preset
    from dgpo_core.data.prompts import Prompts
    from dgpo_core.training.callbacks import Callback
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["Run", "load_run"]

log = logging.getLogger(__name__)


@from_python
def load_run(path: str | PathLike[str], overrides: Overrides = (), *, preset: Preset = None) -> Run:
    """Read a run file. Loads no model and writes nothing.

    Args:
        path: the run file (YAML). Paths in it are relative to the working directory.
        overrides: settings to change, by dotted key: {"rollout.groups": 2}, or strings: ["rollout.groups=2"].
        preset: settings applied to the file before `overrides`: a preset of the backbone, a YAML file, or a list of
            these.

    Raises:
        UserError: with every mistake in the file, its line, and what is allowed there.
    """
    file = path_of(path)
    if file.is_dir():
        raise UserError(f"{file}: is a directory; Run.open opens a run directory")
    return Run(file, settings_of(overrides), preset)


class Run:
    """A run, from a run file (`load_run`) or a run directory (`Run.open`).

    The first call that needs the model loads it, and later calls reuse it; `close`, or the end of a `with` block,
    releases it. Not thread-safe.

    Invalid input raises `UserError`, whose message names the argument, or the file, the key and the line.
    """

    def __init__(self, path: Path, settings: Sequence[str] = (), preset: Preset = None) -> None:
        """Used by `load_run` and `Run.open`. settings: `KEY=VALUE`."""
        from dgpo_core.api.target import run_config
        from dgpo_core.plugins.registry import get_registry

        self._path, self._settings, self._preset = path, list(settings), preset
        self._file = path / "config.yaml" if path.is_dir() else path
        self._config = run_config(path, self._settings, get_registry(), preset=preset)
        self._accept: tuple[str, ...] = ()
        self._target: Target | None = None
        self._loaded: tuple[Any, ...] = ()

    @staticmethod
    @from_python
    def open(
        directory: str | PathLike[str], overrides: Overrides = (), *, accept: Collection[Literal["base"]] = ()
    ) -> Run:
        """Open a run directory, such as runs/quickstart.

        Args:
            directory: the run's directory.
            overrides: the new path of the base model, if it was moved: {"backbone.checkpoint": PATH}.
            accept: ["base"] accepts other base weights than at the start of the run.

        Raises:
            UserError: if this is not a run directory, or if its configuration was edited.
        """
        check_accept(accept, ["base"])
        path = path_of(directory)
        if path.is_file():
            raise UserError(f"{path}: is a file; load_run reads a run file")
        run = Run(path, settings_of(overrides))
        run._accept = tuple(accept)
        return run

    # -- properties and logs ------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """The validated configuration, defaults included."""
        return self._config

    @property
    def directory(self) -> Path:
        """The run directory: run.output/run.name."""
        from dgpo_core.config.locations import run_path

        return self._path if self._path.is_dir() else run_path(self._config)

    @property
    def outcome(self) -> OutcomeRecord | None:
        """How training ended; None before and during training, and after a kill."""
        from dgpo_core.storage.run_directory import read_outcome

        return read_outcome(self.directory)

    def __repr__(self) -> str:
        return f"Run({str(self._path)!r}, {self._config.run.iterations} iterations, in {str(self.directory)!r})"

    @from_python
    def metrics(self) -> list[MetricsRecord]:
        """Return the records of metrics.jsonl, one per iteration, oldest first; skips damaged lines with a warning.

        For plain dicts: `[record.model_dump() for record in run.metrics()]`."""
        from dgpo_schemas.metrics import MetricsRecord

        return self._log("metrics.jsonl", MetricsRecord)

    @from_python
    def evaluations(self) -> list[EvaluationRecord]:
        """Return the records of evaluations.jsonl, the evaluations during training, oldest first."""
        from dgpo_schemas.metrics import EvaluationRecord

        return self._log("evaluations.jsonl", EvaluationRecord)

    def _log(self, name: str, model: Any) -> list[Any]:
        from pydantic import ValidationError

        from dgpo_core.storage.logs import LOGS
        from dgpo_core.system.files import read_json_lines

        lines, damaged = read_json_lines(self.directory / name, LOGS[name])
        found = []
        for _, record in lines:
            try:
                found.append(model.model_validate(record))
            except ValidationError:
                damaged.append(int(record["iteration"]))
        if damaged:
            log.warning("%s: %d lines cannot be read and are left out", self.directory / name, len(damaged))
        return found

    # -- training -----------------------------------------------------------------------------------------------

    @from_python
    def train(
        self,
        *,
        resume: bool | Literal["auto"] = False,
        max_iterations: int | None = None,
        accept: Collection[Literal["base", "logs"]] = (),
        callbacks: Sequence[Callback] = (),
        on_progress: Callable[[MetricsRecord], object] | None = None,
    ) -> Run:
        """Train in this process, to the end or for `max_iterations` more iterations.

        In the main thread Ctrl-C (in a notebook: interrupt) saves the state and returns; then
        `outcome.outcome` is "interrupted".

        Args:
            resume: continue from the newest checkpoint, bit for bit; "auto" starts a run that has none.
            max_iterations: stop after this many iterations; the run can be resumed.
            accept: differences that a resume accepts: other "base" weights, damaged "logs".
            callbacks: instances of `dgpo_core.Callback`.
            on_progress: called with the metrics of each iteration.

        Returns:
            This run, whose `outcome` and `metrics()` have the results, and whose `sample` uses the trained weights.

        Raises:
            UserError: for invalid input; a new run has written nothing.
            RunStopped: if the run stopped itself after saving its state.
        """
        from dgpo_core.api.training import read_run, train
        from dgpo_core.api.watching import Reported
        from dgpo_core.plugins.registry import get_registry

        (max_iterations,) = positive(max_iterations=max_iterations)
        check_accept(accept, ["base", "logs"])
        check_callbacks(callbacks)
        if accept and not resume:
            raise UserError("accept: requires resume; a new run has nothing to accept")
        self.close()  # one model at a time
        registry, config = get_registry(), self._config
        if resume or self._path.is_dir():
            config, _ = read_run(self._file, self._settings, self._preset, registry, resume=True)
        reported = Reported(on_progress)
        try:
            train(
                config, registry, resume=resume, max_iterations=max_iterations, accept=accept,
                callbacks=[reported, *callbacks], announce=reported.on_message,
            )  # fmt: skip
        except RunStopped:
            self._become(config)  # its state is saved
            raise
        self._become(config)
        return self

    def _become(self, config: RunConfig) -> None:
        """Make this object that of the run directory, after training."""
        from dgpo_core.config.locations import run_path

        self._config, self._path = config, run_path(config)
        self._file, self._settings, self._preset = self._path / "config.yaml", [], None

    def resume(
        self,
        *,
        max_iterations: int | None = None,
        accept: Collection[Literal["base", "logs"]] = (),
        callbacks: Sequence[Callback] = (),
        on_progress: Callable[[MetricsRecord], object] | None = None,
    ) -> Run:
        """Continue from the newest checkpoint, bit for bit: `train(resume=True)`."""
        return self.train(
            resume=True, max_iterations=max_iterations, accept=accept, callbacks=callbacks, on_progress=on_progress
        )

    # -- the model ----------------------------------------------------------------------------------------------

    @from_python
    def sample(
        self,
        prompts: Prompts | None = None,
        *,
        model: Model = "ema",
        seed: int = 0,
        count: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        checkpoint: str | int = "newest",
        micro_batch: int | None = None,
    ) -> Samples:
        """Draw samples.

        Args:
            prompts: a string, a `Prompt`, a dict with the keys of a prompt file, a list of these, or a `Path` of a
                prompt file; by default the first 8 held-out prompts.
            model: "base" (before training), "policy" (as trained), "ema_fast" or "ema" (its moving averages). A run
                file that was not trained has only "base".
            seed: seed of the noise; the same seed gives every model the same noise.
            count: samples per prompt.
            steps: solver steps (num_inference_steps), by default those of rollouts.
            guidance: guidance scale (guidance_scale), by default that of rollouts; 1 disables guidance.
            size: side in pixels or (height, width) for prompts without a size.
            checkpoint: "newest", "best", or an iteration.
            micro_batch: samples drawn at once; changes the samples only by rounding.

        Returns:
            `Samples`: `tensors` float32 in [0, 1], `images` (PIL), `save(directory)`.
        """
        from dgpo_core.api.samples import draw
        from dgpo_core.data.prompts import given_prompts

        count, steps, micro_batch = positive(count=count, steps=steps, micro_batch=micro_batch)
        guidance, seed = checked_guidance(guidance), checked_seed(seed)
        sides = sides_of(size)
        chosen = [] if prompts is None else given_prompts(prompts)
        return draw(
            self._opened(model, checkpoint), chosen, count=count, seed=seed, steps=steps, guidance=guidance,
            sides=sides, micro_batch=micro_batch, look=prompts is not None, on_message=_note,
        )  # fmt: skip

    @from_python
    def evaluate(
        self,
        prompts: Prompts | None = None,
        *,
        model: Model = "ema",
        limit: int | None = None,
        samples: int | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        checkpoint: str | int = "newest",
        micro_batch: int | None = None,
    ) -> EvaluationResult:
        """Score the model with the run's evaluation rewards.

        Args:
            prompts: as in `sample`; by default the held-out prompts.
            limit: maximum number of prompts.
            samples: samples per prompt, by default evaluation.samples_per_prompt.
            seed: seed of the noise, by default that of the run's evaluations.
            model, steps, guidance, checkpoint, micro_batch: as in `sample`, by default as configured for evaluation.

        Returns:
            `EvaluationResult`: a record per reward, such as `result["geneval"].value`, with a 95 % interval.
        """
        from dgpo_core.api.evaluating import evaluate
        from dgpo_core.data.prompts import given_prompts

        limit, samples, steps, micro_batch = positive(
            limit=limit, samples=samples, steps=steps, micro_batch=micro_batch
        )
        guidance, seed = checked_guidance(guidance), None if seed is None else checked_seed(seed)
        chosen = [] if prompts is None else given_prompts(prompts)
        return evaluate(
            self._opened(model, checkpoint), chosen, limit=limit, samples=samples, seed=seed, steps=steps,
            guidance=guidance, micro_batch=micro_batch, on_message=_note,
        )  # fmt: skip

    @from_python
    def export(
        self,
        directory: str | PathLike[str],
        *,
        model: Model = "ema",
        format: str | None = None,
        checkpoint: str | int = "newest",
        force: bool = False,
    ) -> Path:
        """Write the trained adapter, or all weights after full fine-tuning, for use without dgpo.

        Args:
            directory: the directory to write; `force` replaces its contents.
            model: "policy", "ema_fast" or "ema".
            format: "diffusers" (the usual default), "peft", "kohya" or "comfyui", as the backbone has them; "merged"
                or "merged-float32": the denoiser with the adapter merged, in the base model's dtype or in float32.
            checkpoint: "newest", "best", or an iteration.

        Returns:
            The directory. For SD3.5: `pipe.load_lora_weights(directory)`.
        """
        from dgpo_core.api.exporting import check_export, export
        from dgpo_core.api.models import check_model
        from dgpo_core.api.output import check_directory

        output = path_of(directory)
        check_format(format)
        check_export(self._path, check_model(model), format)
        check_directory(output, force=force, target=self._path)
        export(self._opened(model, checkpoint, alone=True), output, format)
        return output

    def _opened(self, model: str, checkpoint: str | int, *, alone: bool = False) -> Target:
        """Return the target; load the model if necessary, or the weights of another checkpoint."""
        from dgpo_core.api.models import check_model
        from dgpo_core.api.target import open_target
        from dgpo_core.storage.checkpoint import Checkpoints

        model, which = check_model(model), str(checkpoint)
        if not self._path.is_dir():
            if model != "base":
                raise UserError(
                    f"model={model!r}: {self._path} has not been trained here, so only model='base' is available; "
                    f"train it, or open a run directory with Run.open"
                )
            if self._target is None:
                self._target = open_target(self._path, overrides=self._settings, preset=self._preset, on_message=_note)
            return self._target.using(model)
        checkpoints = Checkpoints(self._path / "checkpoints")
        requested = (which, *(path.name for path in checkpoints.paths()))
        if self._target is not None and alone and self._target.processes.count > 1:
            self.close()
        if self._target is None:
            self._target = open_target(
                self._path,
                checkpoint=which,
                overrides=self._settings,
                accept=self._accept,
                alone=alone,
                on_message=_note,
            )
        elif requested != self._loaded:
            self._target = self._target.put(checkpoints.find(which))
        self._loaded = requested
        return self._target.using(model)

    def close(self) -> None:
        """Release the model and the rewards. The next call that needs them loads them again."""
        target, self._target = self._target, None
        if target is not None:
            target.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _note(text: str) -> None:
    log.warning("%s", text)
