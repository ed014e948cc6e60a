"""Sections about the run itself: name, length, early stopping, checkpoints, logging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, NAME, Float, Int, StrictModel
from dgpo_schemas.places import PathText

__all__ = ["CheckpointsSection", "LoggingSection", "RunSection", "StopSection"]


class RunSection(StrictModel):
    """General settings of the run."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        json_schema_extra=ANYTIME,
        description="Name of the run and of its directory: letters, digits, dots, dashes, underscores.",
    )
    output: PathText = Field(
        default="runs",
        min_length=1,
        json_schema_extra=ANYTIME,
        description="Parent directory of the run's directory.",
    )
    seed: Int = Field(default=0, ge=0, lt=2**63, description="Seed of all random draws of the run.")
    iterations: Int = Field(
        ge=1,
        le=10**9,
        json_schema_extra=FROM_THERE_ON,
        description="Number of training iterations. Each generates samples, scores them, computes advantages and "
        "optimizes.",
    )
    init_from: PathText | None = Field(
        default=None,
        min_length=1,
        description="Run directory whose trained weights this run starts from, with a new optimizer and new averages: "
        "`RUN`, or `RUN@CHECKPOINT:MODEL` with `newest` (the default), `best` or an iteration, and `ema` (the "
        "default), `ema_fast` or `policy`. Both runs need the same backbone and adapter settings. The KL term and a "
        "frozen reference still use the base model; see `objective.reference`.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        json_schema_extra=FROM_THERE_ON,
        description="Device to run on. `mps` is the GPU of a Mac with Apple silicon, with a single process; the page "
        "on laptops says what is not possible there. `auto` uses CUDA if a GPU is available, otherwise MPS if torch "
        "has it, and otherwise the CPU.",
    )
    deterministic: bool = Field(
        default=False,
        json_schema_extra=FROM_THERE_ON,
        description="On a GPU, use deterministic algorithms only, so that a run repeats and resumes bit by bit on the "
        "same kind of card with the same libraries; this costs time. Operators without a deterministic form end the "
        "run; in a reward, they make its scores missing. Rewards in a `worker` are included, those of a `service` are "
        "not. On the CPU, results are reproducible anyway, and nothing changes.",
    )
    threads: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        json_schema_extra=FROM_THERE_ON,
        description="Number of CPU threads for torch; default: torch's own choice. Bit-exact resume requires the same "
        "number.",
    )
    process_timeout: Float = Field(
        default=1800.0,
        ge=0.001,
        le=1e7,
        json_schema_extra=ANYTIME,
        description="Timeout in seconds for waiting on another process of the run; when it expires, the run ends.",
    )
    reward_ranks: Int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Number of processes that hold the rewards, the first ones; the others send them their samples, "
        "which saves the rewards' memory there. Default: all. Scores do not depend on it. It does not apply to rewards "
        "in a `worker` or `service`, and has no effect with as many processes or fewer.",
    )
    shard: bool | Literal["machine"] = Field(
        default=False,
        json_schema_extra=FROM_THERE_ON,
        description="Shard the model's weights across the processes (FSDP2), for a model that does not fit on one GPU. "
        "`machine` shards them across the processes of each machine (HSDP), so that weights are gathered over the fast "
        "links within it. LoRA adapters are not sharded. With `precision.autocast: bf16`, float32 weights are gathered "
        "in bfloat16. It has no effect with a single process.",
    )


class StopSection(StrictModel):
    """Early stopping. Schedules still refer to `run.iterations`.

    The conditions are checked at the end of each iteration. The last iteration is then evaluated and saved as usual.
    """

    seconds: Float | None = Field(
        default=None, gt=0, description="Stop after this training time in seconds, excluding evaluation and saving."
    )
    samples: Int | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="Stop after this number of generated samples, candidates not counted.",
    )
    target: Float | None = Field(
        default=None, description="Stop when the held-out score reaches this value; checked after each evaluation."
    )
    in_a_row: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of evaluations in a row with a score of at least `target` that stop the run; more than one "
        "keep a lucky evaluation from doing so.",
    )
    reward: str | None = Field(
        default=None, min_length=1, description="Name of the evaluated reward for `target`; default: the first one."
    )


class CheckpointsSection(StrictModel):
    """When to save checkpoints, and which ones to keep."""

    every: Int = Field(
        default=10, ge=1, le=10**9, description="Iterations between checkpoints; the last iteration is always saved."
    )
    keep: Int = Field(
        default=2,
        ge=1,
        le=10**9,
        description="Number of most recent checkpoints to keep. The next older one is deleted once samples have been "
        "generated with the newest.",
    )
    best: bool = Field(default=True, description="Also keep the checkpoint with the best evaluation score.")


class LoggingSection(StrictModel):
    """Outputs besides metrics.jsonl, which is always written."""

    console: bool = Field(default=True, description="Show progress on the terminal.")
    trackers: list[Literal["mlflow", "tensorboard", "wandb"]] = Field(
        default_factory=list,
        description="Experiment trackers to show the run to: configuration, numbers, distributions, samples, scores of "
        "tasks. Their files are in `trackers`, below the run directory. One that fails is disabled and reported.",
    )
    project: str = Field(
        default="dgpo", min_length=1, description="Project (wandb) or experiment (mlflow) that shows the run."
    )
    tags: list[str] = Field(default_factory=list, description="Tags of the run in trackers.")
