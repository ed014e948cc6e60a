"""Evaluation of a model, or of files, with benchmark suites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgpo_core.config.pipeline import reward_block_of
from dgpo_core.data.checks import check_suite
from dgpo_core.data.notes import longer_than_read, shared_prompts
from dgpo_core.data.prompts import digest, some_of
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.training.evaluation import Evaluator
from dgpo_core.training.reward_building import suite_scorer
from dgpo_core.training.suites import (
    RESAMPLES,
    measured,
    resampled_scores,
    suite_scores,
    unusable,
    with_intervals,
)
from dgpo_schemas.base import UseBlock
from dgpo_schemas.loading import Document
from dgpo_schemas.suites import FileRecord, JudgeRecord, SuiteRecord

if TYPE_CHECKING:
    from dgpo_core.api.target import Target
    from dgpo_core.contracts import RewardBase, Suite
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Prompt
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["OpenedSuite", "SuiteResult", "evaluate_suite", "open_suite", "suite_record"]


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedSuite:
    """A suite with its prompts and rewards.

    name: name of the component; block: its name and options, defaults included; rewards: their blocks, with defaults;
    shortened: whether only some of its prompts are used.
    """

    name: str
    block: UseBlock
    distribution: str
    suite: Suite
    prompts: list[Prompt]
    rewards: list[RewardBlock]
    shortened: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class SuiteResult:
    """The record of a suite, and the scores and diagnostics of each sample, prompt by prompt."""

    record: SuiteRecord
    samples: Sequence[Mapping[str, Any]]


def open_suite(block: UseBlock, registry: Registry, *, limit: int | None = None) -> OpenedSuite:
    """Build a suite, read its prompts and validate its rewards.

    limit: use only so many of its prompts, drawn always the same. Raises UserError for wrong options or files.
    """
    registered = registry.find("suite", block.use)
    suite: Suite = registry.create("suite", block)
    prompts, blocks = check_suite(suite, f"suite {block.use}")
    resolved = [
        reward_block_of(Document(f"suite {block.use}", one.model_dump(mode="json", exclude_unset=True)), registry)
        for one in blocks
    ]
    chosen = some_of(prompts, limit) if limit else prompts
    return OpenedSuite(
        name=block.use,
        block=UseBlock(use=block.use, options=suite.options.model_dump(mode="json") if suite.options else {}),
        distribution=f"{registered.distribution} {registered.version}",
        suite=suite,
        prompts=chosen,
        rewards=resolved,
        shortened=len(chosen) < len(prompts),
    )


def evaluate_suite(
    target: Target,
    opened: OpenedSuite,
    *,
    samples: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    micro_batch: int | None = None,
    on_message: Callable[[str], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuiteResult:
    """Draw a suite's samples with a model, score them and aggregate.

    samples: samples per prompt, by default those of the suite; other arguments default to the run's evaluation
    settings. on_message: called with notes; on_progress: with the number of finished samples and the total of this
    rank. Raises UserError for prompts that cannot be drawn or scored.
    """
    engine = target.engine
    members = samples or opened.suite.samples_per_prompt
    chosen = target.checked(opened.prompts, guidance)
    target.report([longer_than_read(chosen, engine.backbone)], on_message)
    scorer = suite_scorer(engine, opened.rewards, chosen, f"suite {opened.name}: rewards", members)
    rollout_sampler = engine.evaluation_rollout_sampler(steps=steps, guidance=guidance, micro_batch=micro_batch)
    target.share(rollout_sampler, chosen, members, on_message)
    seed = engine.config.run.seed if seed is None else seed
    evaluator = Evaluator(
        rollout_sampler=rollout_sampler,
        scorer=scorer,
        prompts=chosen,
        members=members,
        draws=Draws(seed).at("suite", opened.name),
        processes=target.processes,
        exact=True,
    )
    try:
        found = evaluator.evaluate(target.model, target.iteration, progress=on_progress)
        models = {reward.label: reward.model for reward in scorer.rewards}
        record = suite_record(
            opened,
            [{label: line[label] for label in models} for line in found.samples],
            models,
            target=target.label,
            model=target.model,
            iteration=target.iteration,
            sampling={"seed": seed, "steps": rollout_sampler.steps, "guidance": rollout_sampler.guidance},
            learned=target.prompts("train") if target.run is not None else (),
        )
    finally:
        scorer.close()
    return SuiteResult(record, found.samples)


def suite_record(
    opened: OpenedSuite,
    samples: Sequence[Mapping[str, Mapping[str, Any]]],
    models: Mapping[str, RewardBase],
    *,
    target: str,
    model: str = "",
    iteration: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    learned: Sequence[Prompt] = (),
    resamples: int = RESAMPLES,
) -> SuiteRecord:
    """Aggregate the scores of a suite's samples.

    samples: prompt by prompt, from the label of each reward to its diagnostics with the key `value`; models: the
    rewards that scored; learned: the prompts that the model was trained on; resamples: number of bootstrap resamples.
    Raises UserError without samples.
    """
    suite, prompts = opened.suite, opened.prompts
    if not samples:
        raise UserError(f"suite {opened.name}: there are no samples to score")
    values = measured(suite, prompts, samples)
    unused = unusable(values, len(samples))
    resampled = resampled_scores(suite, values, prompts, resamples)
    rewards = {
        block.label: JudgeRecord(
            use=block.use,
            options=block.options,
            provenance=dict(models[block.label].provenance()),
            missing=sum(
                one or sample[block.label]["value"] is None for one, sample in zip(unused, samples, strict=True)
            ),
        )
        for block in opened.rewards
    }
    members = len(samples) // len(prompts)
    files = [FileRecord(**dataclasses.asdict(file)) for file in suite.files()]
    return SuiteRecord(
        suite=opened.name,
        distribution=opened.distribution,
        options=opened.block.options,
        target=target,
        model=model,
        iteration=iteration,
        prompts=len(prompts),
        samples_per_prompt=members,
        digest=digest(prompts),
        files=files,
        sampling=dict(sampling or {}),
        scores=with_intervals(suite_scores(suite, values, prompts), resampled),
        rewards=rewards,
        not_comparable=[
            *_deviations(opened, members, files, learned),
            *_gaps(rewards, len(samples)),
            *suite.not_comparable(_judges(rewards)),
        ],
        resampled={name: [None if v != v else v for v in found.tolist()] for name, found in resampled.items()},
    )


def _judges(rewards: Mapping[str, JudgeRecord]) -> dict[str, dict[str, Any]]:
    return {label: {**one.provenance, "use": one.use, "options": one.options} for label, one in rewards.items()}


def _gaps(rewards: Mapping[str, JudgeRecord], total: int) -> list[str]:
    """Return which rewards lack samples: means over the others are not those of the protocol."""
    return [
        f"{one.missing} of {total} samples have no score of {label}" for label, one in rewards.items() if one.missing
    ]


def _deviations(opened: OpenedSuite, members: int, files: Sequence[FileRecord], learned: Sequence[Prompt]) -> list[str]:
    """Return how the protocol differs from the published one, whatever the judge."""
    found = [
        f"{file.name} is not the published file (SHA-256 {file.digest[:12]}…, published {file.published[:12]}…)"
        for file in files
        if file.published is not None and file.published != file.digest
    ]
    if opened.shortened:
        found.append(f"only {len(opened.prompts)} of its prompts were used")
    if members != opened.suite.samples_per_prompt:
        found.append(f"{members} samples per prompt instead of {opened.suite.samples_per_prompt}")
    if seen := shared_prompts(learned, opened.prompts):
        found.append(f"{len(seen)} of its prompts are training prompts of the run")
    return found
