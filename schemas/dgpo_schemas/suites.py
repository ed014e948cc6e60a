"""Records of benchmark suites: `dgpo evaluate --suite` writes one per suite, and `dgpo compare` reads them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dgpo_schemas.base import StrictModel

__all__ = ["FileRecord", "JudgeRecord", "SuiteRecord", "SuiteScore"]


class SuiteScore(StrictModel):
    """One score of a suite."""

    value: float | None = Field(description="The score; null if none of its samples could be scored.")
    low: float | None = Field(description="Lower bound of the 95% bootstrap interval over prompts.")
    high: float | None = Field(description="Upper bound of the 95% bootstrap interval over prompts.")


class JudgeRecord(StrictModel):
    """What scored the samples of a suite."""

    use: str = Field(description="Name of the reward.")
    options: dict[str, Any] = Field(description="Options of the reward, defaults included.")
    provenance: dict[str, Any] = Field(
        default_factory=dict,
        description="What the reward reports of itself, such as `model`, `revision` and the digest of its `template`.",
    )
    missing: int = Field(
        description="Number of samples that it could not score, or of whose answer the suite can make no number."
    )


class FileRecord(StrictModel):
    """A file that a suite was read from."""

    name: str = Field(description="Name of the file.")
    digest: str = Field(description="SHA-256 of its bytes.")
    published: str | None = Field(default=None, description="SHA-256 of the published file; null if it is not known.")


class SuiteRecord(StrictModel):
    """The scores of one suite, and everything that they depend on besides the samples' noise."""

    suite: str = Field(description="Name of the suite.")
    distribution: str = Field(description="Distribution and version of the plugin that defines the suite.")
    options: dict[str, Any] = Field(description="Options of the suite, defaults included.")
    target: str = Field(description="What was evaluated.")
    model: str = Field(description="Name of the evaluated model, such as ema; empty for files.")
    iteration: int | None = Field(description="Number of finished iterations; 0 is the base model; null for files.")
    prompts: int = Field(description="Number of prompts.")
    samples_per_prompt: int = Field(description="Number of samples per prompt.")
    digest: str = Field(description="SHA-256 of the prompts with their metadata.")
    files: list[FileRecord] = Field(description="Files that the prompts were read from.")
    sampling: dict[str, Any] = Field(description="Settings of the samples: seed, steps, guidance; empty for files.")
    scores: dict[str, SuiteScore] = Field(description="The scores by name, the total first.")
    rewards: dict[str, JudgeRecord] = Field(description="The rewards by name.")
    not_comparable: list[str] = Field(
        description="Reasons why the scores cannot be compared with published ones; empty if they can."
    )
    resampled: dict[str, list[float | None]] = Field(
        description="The scores on resampled prompts. The draws depend on the prompts alone, so those of two "
        "records of the same prompts are paired."
    )
