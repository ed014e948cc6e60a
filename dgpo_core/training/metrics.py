"""Build the log records of an iteration. Metrics and timings are separate, because metrics are bit-identical after a
resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.flow.candidates import rank_correlation
from dgpo_core.flow.groups import by_source, informative
from dgpo_core.training.accumulation import OF_SOURCE
from dgpo_core.types import ScoredGroups, TrainingBatch
from dgpo_schemas.metrics import (
    EvaluationRecord,
    ExplorationStatistics,
    MetricsRecord,
    PhaseTiming,
    PromptScores,
    RewardScores,
    RewardStatistics,
    SourceStatistics,
    TimingRecord,
)

if TYPE_CHECKING:
    from dgpo_core.training.callbacks import Phases
    from dgpo_core.training.optimizer import UpdateResult
    from dgpo_core.training.reward_calls import Reward
    from dgpo_core.training.state import RunState
    from dgpo_core.types import Prompt

__all__ = ["evaluation_values", "flat", "metrics_record", "prompt_scores", "timing_record"]


def _finite(value: float | None) -> float | None:
    """Return None for nan and inf, which JSON cannot represent."""
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else value


def _statistics(values: Tensor, subscores: Mapping[str, Tensor] | None = None) -> RewardStatistics:
    """Compute the statistics of float64 values, nan where missing, and of their subscores."""
    present = values[~values.isnan()]
    if not present.numel():
        return RewardStatistics(mean=None, std=None, missing=values.numel())
    means = {name: _finite(float(of_name.nanmean())) for name, of_name in (subscores or {}).items()}
    return RewardStatistics(
        mean=float(present.mean()),
        std=float(present.std(correction=0)),
        missing=values.numel() - present.numel(),
        subscores={name: mean for name, mean in means.items() if mean is not None},
    )


def metrics_record(
    state: RunState,
    groups: ScoredGroups,
    batch: TrainingBatch,
    results: Sequence[UpdateResult],
    averages: Mapping[str, float | None],
    *,
    change_norm: float,
    sigma_range: tuple[float, float],
    timesteps: Mapping[str, float],
) -> MetricsRecord:
    """Build the line of metrics.jsonl for the last finished iteration."""
    useful_groups = informative(groups.rewards, groups.scored)
    known = {"sigmoid", "clip_fraction", "dsm", "dsm_reference", "kl"}
    useful = batch.residual[useful_groups]
    return MetricsRecord(
        iteration=state.iteration,
        updates=state.updates,
        reward=_statistics(groups.summed),  # not normalized rewards or ranks, whose mean says nothing
        rewards={
            label: _statistics(
                values[groups.asked[label]] if label in groups.asked else values, groups.subscores.get(label)
            )
            for label, values in groups.per_reward.items()
        },
        zero_variance_groups=int((~useful_groups).sum()),
        missing_rewards=int((~groups.scored).sum()),
        residual=float(useful.mean()) if len(useful) else None,
        sigmoid=_finite(averages.get("sigmoid")),
        clip_fraction=_finite(averages.get("clip_fraction")),
        dsm=_finite(averages.get("dsm")),
        dsm_reference=_finite(averages.get("dsm_reference")),
        kl=_finite(averages.get("kl")),
        extra={
            name: value
            for name, value in averages.items()
            if name not in known and not name.startswith(OF_SOURCE) and _finite(value) is not None
        },
        grad_norm=_finite(sum(r.grad_norm for r in results) / len(results)),
        learning_rate=results[-1].learning_rate,
        skipped_updates=state.skipped_updates,
        optimized_members=sum(r.gradient.members for r in results),
        skipped_members=sum(r.gradient.skipped for r in results),
        change_norm=_finite(change_norm),
        diversity=float(groups.diversity.mean()),
        statistics={name: float(values.mean()) for name, values in groups.statistics.items()},
        t_min=sigma_range[0],
        t_max=sigma_range[1],
        timesteps={name: value for name, value in timesteps.items() if _finite(value) is not None},
        sources=_sources(groups, batch, useful_groups, averages),
        exploration=_exploration(groups),
    )


def _exploration(groups: ScoredGroups) -> ExplorationStatistics | None:
    candidates = groups.candidates
    if candidates is None:
        return None
    of_all = _statistics(candidates.summed)
    before, known = (values.gather(1, candidates.chosen) for values in (candidates.rewards, candidates.scored))
    correlations = rank_correlation(before, groups.rewards, known & groups.scored)
    return ExplorationStatistics(
        mean=of_all.mean,
        std=of_all.std,
        missing=of_all.missing,
        rank_correlation=_finite(float(correlations.nanmean())),
    )


def _sources(
    groups: ScoredGroups, batch: TrainingBatch, useful_groups: Tensor, averages: Mapping[str, float | None]
) -> dict[str, SourceStatistics]:
    sources = {}
    weights = batch.signed_weights.abs()
    total = float(weights.sum())
    for name, rows in by_source(groups.prompts).items():
        if name:
            reward = _statistics(groups.summed[rows])
            asked = {
                label: values[rows]
                for label, values in groups.per_reward.items()
                if label not in groups.asked or bool(groups.asked[label][rows].any())
            }
            sources[name] = SourceStatistics(
                groups=len(rows),
                mean=reward.mean,
                std=reward.std,
                missing=reward.missing,
                zero_variance_groups=int((~useful_groups[rows]).sum()),
                rewards={label: _statistics(values) for label, values in asked.items()},
                sigmoid=_finite(averages.get(f"{OF_SOURCE}{name}")),
                loss_weight=float(weights[rows].sum()) / total if total else None,
            )
    return sources


def timing_record(iteration: int, total: float, phases: Phases, peak_memory: int) -> TimingRecord:
    """Build the line of timings.jsonl for an iteration."""
    samples = phases.samples
    return TimingRecord(
        iteration=iteration,
        seconds=total,
        phases={
            phase: PhaseTiming(
                seconds=spent,
                samples_per_second=samples[phase] / spent if samples.get(phase) and spent > 0 else None,
            )
            for phase, spent in phases.seconds.items()
        },
        rewards=dict(phases.rewards),
        costs={label: dict(costs) for label, costs in phases.costs.items()},
        peak_memory_bytes=peak_memory,
    )


def flat(record: MetricsRecord | TimingRecord) -> dict[str, float]:
    """Flatten the numbers of a record to dotted keys."""
    flat: dict[str, float] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix] = value

    walk("", record.model_dump(mode="json"))
    return flat


def evaluation_values(records: Sequence[EvaluationRecord]) -> dict[str, float]:
    """Return the scores of an evaluation and of its tasks under dotted keys."""
    values = {f"evaluation.{r.reward}": r.value for r in records}
    for r in records:
        values |= {f"evaluation.{r.reward}.{name}": group.value for name, group in r.groups.items()}
    return values


def prompt_scores(
    samples: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    iteration: int,
    model: str,
) -> PromptScores:
    """Average the scores of an evaluation per prompt; `samples` are those of `Evaluation`, prompt by prompt."""
    members = len(samples) // len(prompts)

    def mean(label: str, prompt: int) -> float | None:
        of_prompt = samples[prompt * members : (prompt + 1) * members]
        values = [sample[label]["value"] for sample in of_prompt if sample[label]["value"] is not None]
        return sum(values) / len(values) if values else None

    return PromptScores(
        iteration=iteration,
        model=model,
        prompts=[prompt.text for prompt in prompts],
        rewards={
            reward.label: RewardScores(
                tasks=[
                    str(p.metadata.get(reward.model.group_by, "other")) if reward.model.group_by else "all"
                    for p in prompts
                ],
                values=[mean(reward.label, i) for i in range(len(prompts))],
            )
            for reward in rewards
        },
    )
