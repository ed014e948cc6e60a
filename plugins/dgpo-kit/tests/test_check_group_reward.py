"""`check_group_reward` passes a sound reward and reports each violated requirement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_kit.contracts import check_group_reward, component_checks, group_reward_checks, run_all
from dgpo_kit.toy import WinRate, WinRateOptions

CPU = torch.device("cpu")
MEDIA = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPT = Prompt("a lamp", {"tag": "x"})
Found = Callable[[str, Callable[[], None]], None]


@pytest.mark.parametrize("opponents", [None, 1, 2])
def test_the_toy_reward_passes(opponents: int | None) -> None:
    check_group_reward(WinRate(WinRateOptions(opponents=opponents), device=CPU), MEDIA, PROMPT)


def test_the_suite_chooses_by_the_class(registry: Registry) -> None:
    checks = list(component_checks(registry, "reward", "win-rate"))
    assert {"permutation", "other-groups", "one-member", "examples"} <= {check.name for check in checks}
    assert "batch-invariance" not in {check.name for check in checks}
    assert "permutation" not in {check.name for check in component_checks(registry, "reward", "brightness")}
    run_all(checks)


class Rate(WinRate):
    """Made wrong by its subclasses."""

    def __init__(self) -> None:
        super().__init__(WinRateOptions(opponents=1), device=CPU)
        self.seen = 0


class ByPlace(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        return super().score_group(media, prompt, [(i,) for i in range(len(keys))])


class FavorsTheFirst(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        found = super().score_group(media, prompt, keys)
        found.values[:1] = 1.0
        return found


class Remembers(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        found = super().score_group(media, prompt, keys)
        self.seen += prompt.text == "another group"
        return Scores(found.values * (0.5 if self.seen else 1.0), found.missing)


class ScoresOne(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        if len(media) == 1:
            return Scores(torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        return super().score_group(media, prompt, keys)


class FailsAtOne(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        if len(media) < 2:
            raise ValueError("nobody to play with")
        return super().score_group(media, prompt, keys)


class TooFew(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        found = super().score_group(media, prompt, keys)
        return Scores(found.values[:-1], found.missing[:-1])


class Darkens(Rate):
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        media *= 0.9
        return super().score_group(media, prompt, keys)


@pytest.mark.parametrize(
    ("kind", "requirement"),
    [
        (ByPlace, "values must not depend on the order of the members"),
        (FavorsTheFirst, "values must not depend on the order of the members"),
        (Remembers, "values must not depend on other groups"),
        (ScoresOne, "a single member must be marked missing"),
        (FailsAtOne, "a single member must be marked missing"),
        (TooFew, r"`values` must have shape \[B\] \[5\], got \[4\]"),
        (Darkens, "media must not be modified"),
    ],
)
def test_violated_requirements_are_reported(kind: type[Rate], requirement: str, assert_found: Found) -> None:
    assert_found(requirement, lambda: check_group_reward(kind(), MEDIA.clone(), PROMPT))


@pytest.mark.parametrize(
    ("examples", "requirement"),
    [
        ([("a", 0.9, True), ("b", 0.1, True)], "at least one good and one bad one"),
        ([("a", 0.1, True), ("b", 0.9, False)], "good examples must score above bad ones"),
        ([("a", 0.9, True), ("b", 0.1, False), ("b", 0.2, False)], "names of examples must be unique"),
    ],
)
def test_examples_of_one_prompt_are_a_group(examples: Any, requirement: str, assert_found: Found) -> None:
    class Shown(Rate):
        def examples(self) -> Sequence[Example]:
            return [Example(name, PROMPT, torch.full((3, 8, 8), level), good) for name, level, good in examples]

    (check,) = [check for check in group_reward_checks(Shown) if check.name == "examples"]
    assert_found(requirement, check.run)
