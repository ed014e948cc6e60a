"""A run as an object: trained, resumed, sampled from, evaluated, exported and read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.api.calls import (
    Overrides,
    at_least_one,
    check_accept,
    check_seed,
    from_python,
    path_of,
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
    from dgpo_core.data.prompts import Prompts
    from dgpo_core.training.callbacks import Callback
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["Run", "load_run"]

log = logging.getLogger(__name__)


@from_python
def load_run(path: str | PathLike[str], overrides: Overrides = (), *, preset: str | None = None) -> Run:
    """Read a run file, ready to be trained; nothing is loaded and nothing is written.

    Args:
        path: the run file (YAML). Paths in it are relative to the working directory.
        overrides: settings to change, by dotted key: {"rollout.groups": 2}, or texts: ["rollout.groups=2"].
        preset: settings laid over the file before `overrides`: a name that the backbone brings, or a YAML file.

    Raises:
        UserError: with every mistake in the file, its line, and what is allowed there.
    """
    file = path_of(path)
    if file.is_dir():
        raise UserError(f"{file}: is a directory; Run.open opens a run directory")
    return Run(file, settings_of(overrides), preset)


class Run:
    """A run: a run file that was read (`load_run`), or a run directory (`Run.open`).

    The object is light. The model is loaded by the first call that needs it and kept for the next ones; `close`, or the
    end of a `with` block, releases it. Not to be used by several threads at a time.

    Mistakes raise `UserError`, whose message names the argument, or the file, the key and the line.
    """

    def __init__(self, path: Path, settings: Sequence[str] = (), preset: str | None = None) -> None:
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
            overrides: where the base model is now, if it was moved: {"backbone.checkpoint": PATH}.
            accept: ["base"] takes base weights that are not those that the run began with.

        Raises:
            UserError: if this is no run directory, or if its configuration is not as the run wrote it.
        """
        check_accept(accept, ["base"])
        path = path_of(directory)
        if path.is_file():
            raise UserError(f"{path}: is a file; load_run reads a run file")
        run = Run(path, settings_of(overrides))
        run._accept = tuple(accept)
        return run

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """Every setting, checked, with its default where the file says nothing."""
        return self._config

    @property
    def directory(self) -> Path:
        """Where the run writes, or has written: run.output/run.name."""
        from dgpo_core.config.locations import run_path

        return self._path if self._path.is_dir() else run_path(self._config)

    @property
    def outcome(self) -> OutcomeRecord | None:
        """How training ended; None while it goes on, before it began, and after it was killed."""
        from dgpo_core.storage.run_directory import read_outcome

        return read_outcome(self.directory)

    def __repr__(self) -> str:
        return f"Run({str(self._path)!r}, {self._config.run.iterations} iterations, in {str(self.directory)!r})"

    @from_python
    def metrics(self) -> list[MetricsRecord]:
        """metrics.jsonl: a record an iteration, oldest first. Lines that cannot be read are left out, with a warning.
        `[record.model_dump() for record in run.metrics()]` are plain dicts."""
        from dgpo_schemas.metrics import MetricsRecord

        return self._log("metrics.jsonl", MetricsRecord)

    @from_python
    def evaluations(self) -> list[EvaluationRecord]:
        """evaluations.jsonl: records of the evaluations during training, oldest first."""
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

        In the main thread Ctrl-C (in a notebook: interrupt) saves the state and returns; `outcome` says "interrupted".

        Args:
            resume: go on from the newest checkpoint, bit for bit; "auto" begins a run that has none.
            max_iterations: stop after so many; the rest can be resumed.
            accept: what a resume takes as it is though it was changed: other "base" weights, damaged "logs".
            callbacks: watch the run; see `dgpo_core.Callback`.
            on_progress: called with the metrics of each iteration.

        Returns:
            This run. `outcome` and `metrics()` tell what came of it, and `sample` and the others use what was trained.

        Raises:
            UserError: for what you can mend; a new run has written nothing then.
            RunStopped: if the run stopped itself, with its state saved.
        """
        from dgpo_core.api.training import read_run, train
        from dgpo_core.api.watching import Reported
        from dgpo_core.plugins.registry import get_registry

        at_least_one(max_iterations=max_iterations)
        check_accept(accept, ["base", "logs"])
        if accept and not resume:
            raise UserError("accept: belongs to a resume; a new run begins with what there is")
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
        """From here on this is the run's directory."""
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
        """Go on from the newest checkpoint, bit for bit: `train(resume=True)`."""
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
            prompts: a text, a `Prompt`, a dict with the keys of a prompt file, a list of these, or a `Path` of a prompt
                file; by default the first 8 held-out prompts.
            model: "base" (before training), "policy" (as trained), "ema_fast" or "ema" (its moving averages). A run
                file that was not trained has only "base".
            seed: of the noise; the same seed gives every model the same noise.
            count: samples of each prompt.
            steps: solver steps (num_inference_steps), by default those of rollouts.
            guidance: guidance scale, by default that of rollouts; 1 is none.
            size: a side in pixels or (height, width), of prompts without a size of their own.
            checkpoint: "newest", "best", or an iteration.
            micro_batch: samples that are drawn at once; any number gives the same samples, up to rounding.

        Returns:
            `Samples`: `tensors` float32 in [0, 1], `images` (PIL), `save(directory)`.
        """
        from dgpo_core.api.samples import draw
        from dgpo_core.data.prompts import given_prompts

        at_least_one(count=count, steps=steps, guidance=guidance, micro_batch=micro_batch)
        check_seed(seed, required=True)
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
        """Score the model with the run's rewards of evaluation.

        Args:
            prompts: as of `sample`; by default the held-out prompts.
            limit: at most so many prompts.
            samples: samples of each prompt, by default evaluation.samples_per_prompt.
            seed: of the noise, by default that of the run's evaluations.
            model, steps, guidance, checkpoint, micro_batch: as of `sample`, by default as evaluation is configured.

        Returns:
            `EvaluationResult`: a record for each reward, `result["geneval"].value` with a 95 % interval.
        """
        from dgpo_core.api.evaluating import evaluate
        from dgpo_core.data.prompts import given_prompts

        at_least_one(limit=limit, samples=samples, steps=steps, guidance=guidance, micro_batch=micro_batch)
        check_seed(seed)
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
            directory: to write; `force` replaces what is there.
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
        check_export(self._path, check_model(model), format)
        check_directory(output, force=force, target=self._path)
        export(self._opened(model, checkpoint, alone=True), output, format)
        return output

    def _opened(self, model: str, checkpoint: str | int, *, alone: bool = False) -> Target:
        """The model, loaded if it is not; its weights if another checkpoint is meant."""
        from dgpo_core.api.models import check_model
        from dgpo_core.api.target import open_target
        from dgpo_core.storage.checkpoint import Checkpoints

        model, which = check_model(model), str(checkpoint)
        if not self._path.is_dir():
            if model != "base":
                raise UserError(
                    f"model={model!r}: {self._path} has not been trained here, so there is only model='base'; "
                    f"`train` it, or open a run directory with Run.open"
                )
            if self._target is None:
                self._target = open_target(self._path, overrides=self._settings, preset=self._preset, on_message=_note)
            return self._target.using(model)
        there = Checkpoints(self._path / "checkpoints")
        asked = (which, *(path.name for path in there.paths()))
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
        elif asked != self._loaded:
            self._target = self._target.put(there.find(which))
        self._loaded = asked
        return self._target.using(model)

    def close(self) -> None:
        """Release the model and the rewards. The run may be used again, which loads them again."""
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
