"""The self-test of rewards: whether a reward scores its good examples above its bad ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from dgpo_core.contracts import RewardBase
from dgpo_core.errors import PluginError, UserError
from dgpo_core.training.score_samples import Result
from dgpo_core.types import Example

__all__ = ["examples_of", "failures", "variation"]


def examples_of(model: RewardBase, label: str) -> list[Example]:
    """Return the examples of a reward. Raises UserError if it has none, PluginError if it fails to create them."""
    try:
        examples = list(model.examples())
    except UserError:
        raise
    except Exception as error:
        raise PluginError(f"reward {label}: its examples failed with {type(error).__name__}: {error}") from error
    if not examples:
        raise UserError(f"reward {label}: has no examples for a self-test; score images with known quality instead")
    return examples


def failures(examples: Sequence[Example], rounds: Sequence[Sequence[Result]]) -> list[str]:
    """Return one line per problem with the scores of the examples; empty if the self-test passes.

    rounds: the results of each repetition. Values that are not finite or out of range are already marked as missing
    (`reward_calls.checked_score`).
    """
    pairs = [pair for results in rounds for pair in zip(examples, results, strict=True)]
    found = list(dict.fromkeys(f"{r.name}: could not be scored: {r.reason}" for _, r in pairs if r.value is None))
    scored = [(r.value, r.name, e.good) for e, r in pairs if r.value is not None]
    for good in (True, False):
        if not any(example.good is good for example in examples):
            found.append(f"there is no {'good' if good else 'bad'} example to compare with")
    worst_good = min(((value, name) for value, name, good in scored if good), default=None)
    best_bad = max(((value, name) for value, name, good in scored if not good), default=None)
    if len(scored) > len(rounds) and len({value for value, _, _ in scored}) == 1:
        found.append(f"every example has the value {scored[0][0]:g}: the reward does not separate good from bad")
    elif worst_good and best_bad and best_bad[0] >= worst_good[0]:
        found.append(
            f"the bad example {best_bad[1]!r} scores {best_bad[0]:g} and the good example {worst_good[1]!r} scores "
            f"{worst_good[0]:g}: every bad example must score below every good one"
        )
    return found


def variation(rounds: Sequence[Sequence[Result]]) -> tuple[float, float]:
    """Return the standard deviation of the values of one example over the repetitions (root mean square over the
    examples), and that of the examples' means. Missing values are left out; nan without two values to compare."""
    values = [[r.value for r in of_example if r.value is not None] for of_example in zip(*rounds, strict=True)]
    repeated = [statistics.variance(one) for one in values if len(one) > 1]
    means = [statistics.fmean(one) for one in values if one]
    noise = math.sqrt(statistics.fmean(repeated)) if repeated else math.nan
    return noise, statistics.stdev(means) if len(means) > 1 else math.nan
