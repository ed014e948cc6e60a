"""Read what runs have been evaluated with: their last evaluation, and the records of suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dgpo_core.config.components import lasting_options
from dgpo_core.errors import UserError
from dgpo_core.storage.run_directory import RunDirectory, read_config
from dgpo_core.system.reading import LARGEST_LOG, parse_json, read_file
from dgpo_schemas.metrics import EvaluationRecord, PromptScores
from dgpo_schemas.run import RunConfig
from dgpo_schemas.suites import SuiteRecord, SuiteScore

__all__ = ["HELDOUT", "Entry", "Name", "Score", "distinct", "read_entry"]

Name = tuple[str, str]
"""The suite, or "held-out prompts", and the score."""
HELDOUT = "held-out prompts"


@dataclass(frozen=True)
class Score:
    """A score of one run with its 95 % interval.

    missing: number of samples without a score. identity: what two scores must share to be compared prompt by prompt, by
    name: prompts, judge, settings and sampling, but not the seed; None if the prompts are not known.
    resampled [B]: of a suite, on resampled prompts; per_prompt [P] with tasks: of an evaluation, nan where missing;
    None if they are not known. notes: why it cannot be compared with published scores.
    """

    value: float | None
    low: float | None
    high: float | None
    missing: int
    identity: Mapping[str, Any] | None = None
    resampled: NDArray[np.float64] | None = None
    per_prompt: NDArray[np.float64] | None = None
    tasks: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """The scores of a run by name, and what was evaluated.

    iteration: after which the held-out prompts of a run were evaluated; None of a file, and without an evaluation.
    """

    label: str
    described: str
    scores: dict[Name, Score]
    iteration: int | None = None


def read_entry(path: Path) -> Entry:
    """Read a run directory, or a file that `dgpo evaluate --suite ... --output` wrote.

    Raises UserError for other paths, and if nothing has been evaluated.
    """
    if path.is_dir():
        evaluated, last = _evaluation(path)
        scores = {**evaluated, **_suites_of(path)}
        if not scores:
            raise UserError(f"{path}: has no evaluation and no suites; `dgpo evaluate {path} --suite NAME` makes one")
        return Entry(path.name, str(path), scores, last)
    records = _file(path)
    scores = {name: score for record in records for name, score in _of_suite(record).items()}
    return Entry(path.stem, records[0].target, scores)


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with labels that differ: the description in place of a label that is used twice."""
    labels = [entry.label for entry in entries]
    return [replace(one, label=one.described) if labels.count(one.label) > 1 else one for one in entries]


def _file(path: Path) -> list[SuiteRecord]:
    try:
        data = parse_json(read_file(path, LARGEST_LOG))
        data = data["suites"] if isinstance(data, dict) and "suites" in data else [data]
        records = [SuiteRecord.model_validate(one) for one in data]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, ValidationError, TypeError, KeyError):
        records = []
    if not records:
        raise UserError(f"{path}: neither a run directory nor a file of `dgpo evaluate --suite NAME --output FILE`")
    return records


def _suites_of(run: Path) -> dict[Name, Score]:
    """Return the newest record of each suite of a run."""
    newest: dict[str, SuiteRecord] = {}
    for path in sorted((run / "suites").glob("*.json")):
        for record in _file(path):
            known = newest.get(record.suite)
            if known is None or (record.iteration or 0) >= (known.iteration or 0):
                newest[record.suite] = record
    return {name: score for record in newest.values() for name, score in _of_suite(record).items()}


def _of_suite(record: SuiteRecord) -> dict[Name, Score]:
    identity = _identity(record)
    missing = sum(judge.missing for judge in record.rewards.values())
    return {
        (record.suite, name): Score(
            value=score.value,
            low=score.low,
            high=score.high,
            missing=missing,
            identity=identity,
            resampled=_array(record.resampled.get(name)),
            notes=record.not_comparable,
        )
        for name, score in record.scores.items()
    }


def _identity(record: SuiteRecord) -> dict[str, Any]:
    """Return what the scores of a suite depend on, besides the model and the noise."""
    judges = {
        label: (judge.use, _lasting(judge.use, judge.options), judge.provenance)
        for label, judge in record.rewards.items()
    }
    files = {file.name for file in record.files}  # their content is in the digest; the rewards' options are above
    settings = {
        key: value
        for key, value in record.options.items()
        if isinstance(value, str | int | float) and Path(str(value)).name not in files
    }
    sampling = {key: value for key, value in record.sampling.items() if key != "seed"}
    return {
        "prompts": (record.suite, record.digest),
        "judge": judges,
        "settings": settings,
        "sampling": (record.samples_per_prompt, sampling),
    }


def _lasting(use: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from dgpo_core.plugins.registry import get_registry  # imported here because tests replace it

    return lasting_options("reward", use, options, get_registry())


def _array(values: Sequence[float | None] | None) -> NDArray[np.float64] | None:
    return None if values is None else np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _evaluation(run: Path) -> tuple[dict[Name, Score], int | None]:
    """Return the rewards of the last evaluation of a run, and after which iteration it was; none and None without."""
    records = []
    for line in RunDirectory(run).read("evaluations.jsonl"):
        try:
            records.append(EvaluationRecord.model_validate(line))
        except ValidationError:
            continue
    last = max((record.iteration for record in records), default=None)
    prompts = None if last is None else _prompts(run, last)
    config = _config(run)
    scores = {
        (HELDOUT, record.reward): _of_record(record, prompts, config)
        for record in records
        if record.iteration == last and record.role != "statistic"
    }
    return scores, last


def _of_record(record: EvaluationRecord, prompts: PromptScores | None, config: RunConfig | None) -> Score:
    score = SuiteScore(value=record.value, low=record.low, high=record.high)
    known = None if prompts is None else prompts.rewards.get(record.reward)
    if prompts is None or known is None:
        return Score(score.value, score.low, score.high, record.missing)
    identity = {"prompts": (prompts.prompts, known.tasks)} | (
        {} if config is None else _measured(config, record.reward)
    )
    return Score(
        score.value, score.low, score.high, record.missing, identity, per_prompt=_array(known.values), tasks=known.tasks
    )


def _measured(config: RunConfig, label: str) -> dict[str, Any]:
    """Return the reward with a label, and how the samples that it scores are drawn."""
    evaluation, rollout = config.evaluation, config.rollout
    blocks = [*(evaluation.rewards or config.rewards), *evaluation.monitors.rewards]
    judges = [(block.use, _lasting(block.use, block.options)) for block in blocks if block.label == label]
    sampler = evaluation.sampler or rollout.sampler
    sampling = {
        key: getattr(rollout, key) if getattr(evaluation, key) is None else getattr(evaluation, key)
        for key in ("steps", "guidance", "guidance_interval")
    }
    return {"judge": judges, "sampling": (evaluation.samples_per_prompt, sampling, sampler.model_dump())}


def _config(run: Path) -> RunConfig | None:
    """Return the configuration of a run; None if it cannot be read, such as that of another version."""
    try:
        return read_config(run)
    except UserError:
        return None


def _prompts(run: Path, iteration: int) -> PromptScores | None:
    try:
        return PromptScores.model_validate_json(read_file(run / "scores" / f"{iteration:06d}.json", LARGEST_LOG))
    except (OSError, ValueError):
        return None
