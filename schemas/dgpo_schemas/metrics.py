"""Records in the logs of a run: metrics, timings, evaluations, outcome."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dgpo_schemas.base import StrictModel

__all__ = [
    "EvaluationRecord",
    "ExplorationStatistics",
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


SPARSE = frozenset({"subscores", "sources", "costs", "compile", "exploration"})


class Sparse(StrictModel):
    """A record that omits what `SPARSE` names where it is empty."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = dump(self)
        return {key: value for key, value in data.items() if key not in SPARSE or value}


class RewardStatistics(Sparse):
    """Statistics of one reward over the samples of an iteration that it scores."""

    mean: float | None = Field(description="Mean over the scored samples.")
    std: float | None = Field(description="Population standard deviation over the scored samples.")
    missing: int = Field(description="Number of samples that could not be scored.")
    subscores: dict[str, float] = Field(
        default_factory=dict,
        description="Mean of each subscore in the reward's diagnostics, over the scored samples that have it; absent "
        "if there are none.",
    )


class SourceStatistics(StrictModel):
    """Reward statistics of one prompt source in an iteration."""

    groups: int = Field(description="Number of groups.")
    mean: float | None = Field(description="Mean of the weighted sum of the source's rewards over the scored samples.")
    std: float | None = Field(description="Population standard deviation of the weighted sum.")
    missing: int = Field(description="Number of samples with a missing reward.")
    zero_variance_groups: int = Field(
        description="Number of groups with fewer than two scored samples, or with equal rewards."
    )
    rewards: dict[str, RewardStatistics] = Field(
        default_factory=dict, description="Statistics of each reward that the source uses."
    )
    sigmoid: float | None = Field(default=None, description="Mean of sigmoid(S_g) over the groups of the source.")
    loss_weight: float | None = Field(
        default=None,
        description="Share of the source in the sum of the absolute signed weights of the iteration; null if it is 0.",
    )


class ExplorationStatistics(StrictModel):
    """Statistics of the candidates of an iteration (`rollout.explore`)."""

    mean: float | None = Field(description="Mean of the weighted sum of the rewards over the scored candidates.")
    std: float | None = Field(description="Population standard deviation of the weighted sum.")
    missing: int = Field(description="Number of candidates with a missing reward.")
    rank_correlation: float | None = Field(
        description="Spearman's rank correlation between the rewards of a group's members as candidates and drawn "
        "again, averaged over groups; that of the best and the worst, which is higher than that of all candidates. "
        "Null if no group has one."
    )


class MetricsRecord(Sparse):
    """One iteration in metrics.jsonl. No value depends on wall-clock time, so a resumed run writes the same lines.

    Values of the objective are means over optimized samples and timesteps, or null if there are none.
    """

    iteration: int = Field(description="Number of finished iterations, from 1.")
    updates: int = Field(description="Number of optimizer updates so far.")
    reward: RewardStatistics = Field(description="Statistics of the weighted sum of the rewards.")
    rewards: dict[str, RewardStatistics] = Field(description="Statistics of each reward.")
    zero_variance_groups: int = Field(
        description="Number of groups with fewer than two scored samples, or with equal rewards."
    )
    missing_rewards: int = Field(description="Number of samples with a missing reward.")
    residual: float | None = Field(
        description="Mean over groups of |sum of signed weights|; 0 if the partition function Z cancels."
    )
    sigmoid: float | None = Field(description="Mean of sigmoid(S_g) over groups.")
    clip_fraction: float | None = Field(description="Fraction of samples with a clipped gradient.")
    dsm: float | None = Field(description="Denoising error (dsm) of the policy.")
    dsm_reference: float | None = Field(description="Denoising error (dsm) of the reference model.")
    kl: float | None = Field(
        description="KL term: mean squared distance between the velocities of the policy and of the frozen base model."
    )
    extra: dict[str, float] = Field(description="Further values of the objective.")
    grad_norm: float | None = Field(description="Gradient norm before clipping.")
    learning_rate: float = Field(description="Learning rate of the last update.")
    skipped_updates: int = Field(description="Number of updates skipped for non-finite values so far.")
    optimized_members: int = Field(description="Number of optimized samples, times timesteps.")
    skipped_members: int = Field(description="Number of samples skipped for a zero weight, times timesteps.")
    change_norm: float | None = Field(
        description="Euclidean distance of the trained weights from their initial values."
    )
    diversity: float = Field(description="Mean pairwise RMS distance of samples within groups, of pixels in [0, 1].")
    statistics: dict[str, float] = Field(description="Mean image statistics: saturation, edge density, dark pixels.")
    t_min: float = Field(description="Smallest sigma of the training timesteps.")
    t_max: float = Field(description="Largest sigma of the training timesteps.")
    timesteps: dict[str, float] = Field(
        default_factory=dict, description="Values of the timestep policy, including its bounds t_min and t_max."
    )
    sources: dict[str, SourceStatistics] = Field(
        default_factory=dict,
        description="Statistics of each prompt source with groups in the iteration; absent if the run has no sources.",
    )
    exploration: ExplorationStatistics | None = Field(
        default=None, description="Statistics of the candidates; absent without `rollout.explore`."
    )


class PhaseTiming(StrictModel):
    """Timing of one phase of an iteration."""

    seconds: float = Field(description="Duration in seconds.")
    samples_per_second: float | None = Field(
        description="Throughput in samples per second; while optimizing, samples times timesteps."
    )


class TimingRecord(Sparse):
    """One iteration in timings.jsonl. `compile` is omitted without `backbone.compile`."""

    iteration: int = Field(description="Number of finished iterations, from 1.")
    seconds: float = Field(description="Duration of the iteration in seconds, excluding evaluation and checkpoint.")
    phases: dict[str, PhaseTiming] = Field(
        description="Phases: measure (some timestep policies only), rollout, score (on its own thread), "
        "wait_for_scores, compute_advantages, optimize, evaluate, checkpoint."
    )
    rewards: dict[str, float] = Field(description="Seconds spent in each reward, summed over its threads.")
    costs: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="What scoring cost since the iteration before, by reward and name, such as requests and tokens of "
        "a judge; absent if no reward reports costs.",
    )
    peak_memory_bytes: int = Field(
        description="Peak memory so far, in bytes: of the GPU, or of the process when running on the CPU."
    )
    compile: dict[str, int] = Field(
        default_factory=dict,
        description="With `backbone.compile`, of the main process so far: the number of `graphs` that torch.compile "
        "made, and how often it found code that runs without compilation (`eager`).",
    )


class GroupScore(StrictModel):
    """Score of one task of an evaluation."""

    value: float = Field(description="Mean over prompts.")
    low: float = Field(description="Lower bound of the 95% bootstrap confidence interval.")
    high: float = Field(description="Upper bound of the 95% bootstrap confidence interval.")
    n: int = Field(description="Number of prompts.")


class EvaluationRecord(Sparse, GroupScore):
    """One reward or image statistic of an evaluation, in evaluations.jsonl. The first record is the target reward."""

    iteration: int = Field(description="Number of finished iterations; 0 is the base model.")
    model: str = Field(description="Name of the evaluated model, such as ema.")
    reward: str = Field(description="Name of the reward or image statistic.")
    role: Literal["target", "monitor", "statistic"] = Field(
        description="`target`: a reward to evaluate with. `monitor`: an out-of-domain reward. `statistic`: an image "
        "statistic."
    )
    missing: int = Field(description="Number of samples that could not be scored.")
    groups: dict[str, GroupScore] = Field(description="Scores of the tasks; `value` is their unweighted mean.")
    sources: dict[str, GroupScore] = Field(
        default_factory=dict,
        description="Scores of the prompt sources that use the reward, each like `value` over its own prompts; "
        "absent where there are none.",
    )
    subscores: dict[str, float] = Field(
        default_factory=dict,
        description="Mean of each subscore in the reward's diagnostics, weighted like `value`; absent if there are "
        "none.",
    )


class RewardScores(StrictModel):
    """Scores of one reward in an evaluation, per prompt."""

    tasks: list[str] = Field(description="Task of each prompt. The reward's score is the unweighted mean of the tasks.")
    values: list[float | None] = Field(
        description="Mean over the samples of each prompt; null if none could be scored."
    )


class PromptScores(StrictModel):
    """scores/NNNNNN.json: per-prompt scores of an evaluation, for comparing runs prompt by prompt."""

    iteration: int = Field(description="Number of finished iterations; 0 is the base model.")
    model: str = Field(description="Name of the evaluated model, such as ema.")
    prompts: list[str] = Field(description="The held-out prompts.")
    rewards: dict[str, RewardScores] = Field(description="Scores of the evaluated rewards and the monitors.")


class OutcomeRecord(StrictModel):
    """outcome.json: how a run ended. The file does not exist while the run is active or after it was killed."""

    outcome: Literal["finished", "interrupted", "failed"] = Field(description="How the last process ended.")
    iteration: int = Field(description="Number of finished iterations.")
    ended_by: Literal["iterations", "seconds", "samples", "target"] | None = Field(
        description="Condition that ended the run: run.iterations, or a key of `stop`; null if none was reached."
    )
