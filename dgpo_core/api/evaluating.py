"""Evaluation of a model on prompts: scores with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgpo_core.data.notes import longer_than_read, notes
from dgpo_core.data.prompts import some_of
from dgpo_core.data.wording import reworded_prompts
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.system.spelling import option
from dgpo_core.training.evaluation import Evaluator, ManyStepSolve
from dgpo_core.training.reward_building import evaluation_scorer

if TYPE_CHECKING:
    from dgpo_core.api.target import Target
    from dgpo_core.types import Prompt
    from dgpo_schemas.metrics import EvaluationRecord

__all__ = ["EvaluationResult", "evaluate"]


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of a model's samples.

    label: a description of the model; records: one per reward, then one per statistic of the media, with 95 % bootstrap
    intervals over prompts; samples: scores and diagnostics of each sample, ordered by prompt; prompts: the prompts;
    members: the number of samples per prompt.
    """

    label: str
    records: list[EvaluationRecord]
    samples: list[dict[str, Any]]
    prompts: list[Prompt]
    members: int

    def __iter__(self) -> Iterator[EvaluationRecord]:
        return iter(self.records)

    def __getitem__(self, reward: str) -> EvaluationRecord:
        """Return the record of a reward or a statistic by name. Raises KeyError."""
        return {record.reward: record for record in self.records}[reward]

    def __repr__(self) -> str:
        scores = ", ".join(f"{r.reward} {r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in self.records)
        return f"EvaluationResult({self.label}: {scores}; {len(self.prompts)} prompts x {self.members})"


def evaluate(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    limit: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    micro_batch: int | None = None,
    on_message: Callable[[str], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationResult:
    """Score a target on at most `limit` prompts, by default its held-out prompts.

    Other arguments default to the run's evaluation settings. on_message: called with notes; on_progress: with the
    number of finished samples and the total of this rank. Raises UserError for prompts that cannot be drawn or scored.
    """
    engine = target.engine
    members = samples or engine.config.evaluation.samples_per_prompt
    chosen = list(prompts) or target.prompts("heldout")
    if not chosen:
        raise UserError(f"{target.path}: has no held-out prompts; name a file with {option('prompts')}")
    chosen = target.checked(some_of(chosen, limit) if limit else chosen, guidance)
    target.report([*(notes(chosen) if prompts else ()), longer_than_read(chosen, engine.backbone)], on_message)
    scorer = evaluation_scorer(engine, chosen, members)
    rollout_sampler = engine.evaluation_rollout_sampler(steps=steps, guidance=guidance, micro_batch=micro_batch)
    target.share(rollout_sampler, chosen, members, on_message)
    evaluator = Evaluator(
        rollout_sampler=rollout_sampler,
        scorer=scorer,
        prompts=chosen,
        members=members,
        draws=Draws(engine.config.run.seed if seed is None else seed).at("evaluation"),
        many_step=ManyStepSolve.of(engine, guidance, micro_batch),
        reworded=reworded_prompts(engine.config.evaluation.monitors.wording, chosen, engine.registry, some=False),
        processes=target.processes,
        exact=True,
    )
    try:
        found = evaluator.evaluate(target.model, target.iteration, progress=on_progress)
    finally:
        scorer.close()  # the engine keeps the rewards, because it may evaluate again
    return EvaluationResult(target.label, found.records, found.samples, chosen, members)
