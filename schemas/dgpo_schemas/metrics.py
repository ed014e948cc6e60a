"""Lines of a run's logs: what was computed, what it cost, and how evaluations went."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dgpo_schemas.base import StrictModel

__all__ = [
    "EvaluationRecord",
    "GroupScore",
    "MetricsRecord",
    "OutcomeRecord",
    "PhaseTiming",
    "PromptScores",
    "RewardScores",
    "RewardStatistics",
    "SourceStatistics",
    "TimingRecord",
]


class Sparse(StrictModel):
    """A record that is written without `components` and `sources` where there are none."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = dump(self)
        return {key: value for key, value in data.items() if key not in ("subscores", "sources") or value}


class RewardStatistics(Sparse):
    """One reward over an iteration's samples, those of sources that ask for it."""

    mean: float | None = Field(description="Mean of the scored samples.")
    std: float | None = Field(description="Population standard deviation of the scored samples.")
    missing: int = Field(description="Samples that could not be scored.")
    subscores: dict[str, float] = Field(
        default_factory=dict,
        description="Means of the subscores that the reward names in its diagnostics, over the scored samples that "
        "have them; absent if there are none.",
    )


class SourceStatistics(StrictModel):
    """The reward of the groups of one source of prompts in an iteration."""

    groups: int = Field(description="Groups.")
    mean: float | None = Field(description="Mean of the weighted sum of its rewards over the scored samples.")
    std: float | None = Field(description="Population standard deviation of it.")
    missing: int = Field(description="Samples with a missing reward.")
    zero_variance_groups: int = Field(description="Groups whose scored rewards are all equal (or fewer than two).")


class MetricsRecord(Sparse):
    """One iteration in metrics.jsonl. Nothing here depends on clocks, so a resumed run writes the same lines.

    Averages of the objective are means over the optimized members and timesteps; null where there are none.
    """

    iteration: int = Field(description="Iterations finished, from 1.")
    updates: int = Field(description="Optimizer updates so far.")
    reward: RewardStatistics = Field(description="The weighted sum of the rewards.")
    rewards: dict[str, RewardStatistics] = Field(description="Each reward by itself.")
    zero_variance_groups: int = Field(description="Groups whose scored rewards are all equal (or fewer than two).")
    missing_rewards: int = Field(description="Samples with a missing reward.")
    residual: float | None = Field(description="Mean |sum of signed weights| of a group: 0 where Z cancels.")
    sigmoid: float | None = Field(description="Mean sigmoid(S_g).")
    clip_fraction: float | None = Field(description="Share of members whose gradient was clipped.")
    dsm: float | None = Field(description="Denoising error of the policy.")
    dsm_reference: float | None = Field(description="Denoising error of the reference.")
    kl: float | None = Field(description="Mean squared distance of the policy's velocity from the frozen base model's.")
    extra: dict[str, float] = Field(description="Further averages of the objective.")
    grad_norm: float | None = Field(description="Norm of the gradient before clipping.")
    learning_rate: float = Field(description="Learning rate of the last update.")
    skipped_updates: int = Field(description="Updates skipped for non-finite values, so far.")
    optimized_members: int = Field(description="Members optimized, times timesteps.")
    skipped_members: int = Field(description="Members skipped for a zero weight, times timesteps.")
    change_norm: float | None = Field(
        description="Euclidean distance of the trained weights from where training began."
    )
    diversity: float = Field(description="Mean pairwise distance within groups, root mean square of pixels in [0, 1].")
    statistics: dict[str, float] = Field(description="Means of the media's statistics: saturation, edges, darkness.")
    t_min: float = Field(description="Smallest sigma that the iteration was optimized at.")
    t_max: float = Field(description="Largest sigma that the iteration was optimized at.")
    timesteps: dict[str, float] = Field(
        default_factory=dict, description="The timestep policy: t_min and t_max it could draw from, and its own values."
    )
    sources: dict[str, SourceStatistics] = Field(
        default_factory=dict,
        description="Each source of prompts that has groups in the iteration; absent where the run has one list of "
        "prompts.",
    )


class PhaseTiming(StrictModel):
    """One phase of an iteration."""

    seconds: float = Field(description="Seconds spent.")
    samples_per_second: float | None = Field(description="Samples (times timesteps when optimizing) a second.")


class TimingRecord(StrictModel):
    """One iteration in timings.jsonl."""

    iteration: int = Field(description="Iterations finished, from 1.")
    seconds: float = Field(description="Seconds of the iteration, without evaluation and checkpoint.")
    phases: dict[str, PhaseTiming] = Field(
        description="measure (only some timestep policies), roll_out, score (on its own thread), wait_for_scores, "
        "weigh, optimize, evaluate, checkpoint."
    )
    rewards: dict[str, float] = Field(description="Seconds spent in each reward, all its threads together.")
    peak_memory_bytes: int = Field(description="Peak memory so far: of the card, or of the process on the CPU.")


class GroupScore(StrictModel):
    """One task of an evaluation."""

    value: float = Field(description="Mean over prompts.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval.")
    high: float = Field(description="Upper end.")
    n: int = Field(description="Prompts.")


class EvaluationRecord(Sparse, GroupScore):
    """One reward, or one statistic of the media, of one evaluation in evaluations.jsonl; the first is the target."""

    iteration: int = Field(description="Iterations finished; 0 is the base model.")
    model: str = Field(description="Weights that were evaluated.")
    reward: str = Field(description="The reward's name, or that of a statistic of the media.")
    role: Literal["target", "monitor", "statistic"] = Field(
        description="A reward evaluated with, one that only monitors, or a statistic of the media."
    )
    missing: int = Field(description="Samples that could not be scored.")
    groups: dict[str, GroupScore] = Field(description="Scores of the tasks; `value` is their unweighted mean.")
    sources: dict[str, GroupScore] = Field(
        default_factory=dict,
        description="Scores of the sources of prompts that ask for the reward, each like `value` over its own prompts; "
        "absent where there are none.",
    )
    subscores: dict[str, float] = Field(
        default_factory=dict,
        description="Means of the subscores that the reward names in its diagnostics, weighted like `value`; absent if "
        "it names none.",
    )


class RewardScores(StrictModel):
    """One reward of an evaluation, prompt by prompt."""

    tasks: list[str] = Field(description="Task of each prompt; the reward's score is the unweighted mean of the tasks.")
    values: list[float | None] = Field(description="Mean of each prompt's samples; null where none could be scored.")


class PromptScores(StrictModel):
    """scores/NNNNNN.json: what an evaluation's records were averaged from, so that runs can be compared by prompt."""

    iteration: int = Field(description="Iterations finished; 0 is the base model.")
    model: str = Field(description="Weights that were evaluated.")
    prompts: list[str] = Field(description="The held-out prompts.")
    rewards: dict[str, RewardScores] = Field(description="Rewards evaluated with, and monitors.")


class OutcomeRecord(StrictModel):
    """outcome.json: how a run ended. It is not there while the run goes on, nor after it was killed."""

    outcome: Literal["finished", "interrupted", "failed"] = Field(description="How the last process ended.")
    iteration: int = Field(description="Iterations finished.")
    ended_by: Literal["iterations", "seconds", "samples", "target"] | None = Field(
        description="The end that was reached: run.iterations, or one in `stop`; null if none was."
    )
