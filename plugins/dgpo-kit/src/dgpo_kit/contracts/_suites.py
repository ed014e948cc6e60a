"""Checks of suites: deterministic prompts, rewards that exist, and an aggregation that is a function of its arguments.

p is the number of prompts, n the number of samples per prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from dgpo_core.contracts import Suite
from dgpo_core.training.suites import measured, suite_scores
from dgpo_core.types import Prompt
from dgpo_kit.contracts._assertions import global_state_left_alone, that
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["check_suite", "suite_checks"]

Make = Callable[[], Suite]
MOST = 40
"""Number of prompts that the checks of the aggregation use."""


def check_suite(make: Make) -> None:
    """Check the prompts, the rewards and the aggregation of a suite. Raises AssertionError at the first violation."""
    run_all(suite_checks(make))


def suite_checks(make: Make) -> Iterator[Check]:
    """Yield the checks of a suite. make: builds it, always the same."""

    def subject() -> Make:
        make()
        return make

    return checks_of(
        subject, prompts, prompt_determinism, rewards, samples, group_by, aggregation, prompt_order, sample_order,
        random_state,
    )  # fmt: skip


def _values(suite: Suite) -> tuple[list[Prompt], dict[str, Tensor]]:
    """Return at most `MOST` prompts, spread over all, and made-up numbers of their samples [p, n]."""
    found = list(suite.prompts())
    chosen = found[:: max(1, math.ceil(len(found) / MOST))]
    members = max(2, suite.samples_per_prompt)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(len(chosen) * members, generator=generator, dtype=torch.float64)
    samples = [{block.label: {"value": value} for block in suite.rewards()} for value in draws.tolist()]
    values = measured(suite, chosen, samples)
    return chosen, {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64) if value.isnan().all() else value
        for name, value in values.items()
    }


def prompts(make: Make) -> None:
    """There are prompts, each with a text and JSON-serializable metadata."""
    found = make().prompts()
    that(found, "there must be at least one prompt")
    that(all(prompt.text.strip() for prompt in found), "every prompt must have a text")
    json.dumps([dict(prompt.metadata) for prompt in found], allow_nan=False)


def prompt_determinism(make: Make) -> None:
    """The same options return the same prompts."""
    once, again = ([(p.text, dict(p.metadata)) for p in make().prompts()] for _ in range(2))
    that(once == again, "the same options must return the same prompts")


def rewards(make: Make) -> None:
    """There are rewards, as blocks of a run file with distinct labels."""
    found = list(make().rewards())
    that(found and all(isinstance(block, RewardBlock) for block in found), f"rewards must be RewardBlocks, got {found}")
    labels = [block.label for block in found]
    that(len(set(labels)) == len(labels), f"the labels of the rewards must be distinct, got {labels}")


def samples(make: Make) -> None:
    """`samples_per_prompt` is a number of samples."""
    found = make().samples_per_prompt
    that(isinstance(found, int) and found >= 1, f"samples_per_prompt must be an integer of at least 1, got {found!r}")


def group_by(make: Make) -> None:
    """`group_by` is None or a metadata key of every prompt."""
    suite = make()
    key = suite.group_by
    missing = [prompt.text for prompt in suite.prompts() if key is not None and key not in prompt.metadata]
    that(not missing, f"group_by is {key!r}, which is no metadata key of {missing[:1]}")


def aggregation(make: Make) -> None:
    """The scores are numbers by name, and a missing sample changes no name."""
    suite = make()
    chosen, values = _values(suite)
    full = _scores(suite, values, chosen)
    that(any(value == value for value in full.values()), f"no score of complete samples is a number: {full}")
    holes = {name: value.clone() for name, value in values.items()}
    for value in holes.values():
        value[0, 0] = math.nan
    names = list(_scores(suite, holes, chosen))
    that(names == list(full), f"a missing sample must not change the names of the scores: {names}, not {list(full)}")


def prompt_order(make: Make) -> None:
    """The total does not depend on the order of the prompts."""
    suite = make()
    chosen, values = _values(suite)
    order = torch.arange(len(chosen)).flip(0)
    turned = _scores(suite, {n: v[order] for n, v in values.items()}, [chosen[i] for i in order.tolist()])
    _same(_scores(suite, values, chosen), turned, "in another order of the prompts")


def sample_order(make: Make) -> None:
    """The total does not depend on the order of the samples of a prompt."""
    suite = make()
    chosen, values = _values(suite)
    total = next(iter(_scores(suite, values, chosen)))
    turned = _scores(suite, {name: value.flip(1) for name, value in values.items()}, chosen)
    _same({total: _scores(suite, values, chosen)[total]}, turned, "in another order of the samples")


def random_state(make: Make) -> None:
    """A suite does not use a global random generator."""
    with global_state_left_alone("a suite"):
        suite = make()
        chosen, values = _values(suite)
        _scores(suite, values, chosen)


def _scores(suite: Suite, values: Mapping[str, Tensor], prompts: list[Prompt]) -> dict[str, float]:
    return suite_scores(suite, values, prompts)


def _same(one: Mapping[str, float], other: Mapping[str, float], how: str) -> None:
    for name, value in one.items():
        found = other.get(name, math.nan)
        same = math.isclose(value, found, rel_tol=1e-9, abs_tol=1e-9) or (value != value and found != found)
        that(same, f"{name} must be the same {how}: {value} became {found}")
