"""Whether a reward tells its own good examples from its bad ones."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core.contracts import RewardBase
from dgpo_core.errors import PluginError, UserError
from dgpo_core.training.score_samples import Result
from dgpo_core.types import Example

__all__ = ["examples_of", "failures"]


def examples_of(model: RewardBase, label: str) -> list[Example]:
    """A reward's examples. Raises UserError if it has none, PluginError if it fails to make them."""
    try:
        found = list(model.examples())
    except UserError:
        raise
    except Exception as error:
        raise PluginError(f"reward {label}: its examples failed with {type(error).__name__}: {error}") from error
    if not found:
        raise UserError(f"reward {label} has no examples, so it cannot test itself; score images that you know")
    return found


def failures(examples: Sequence[Example], results: Sequence[Result]) -> list[str]:
    """What is wrong with the scores of the examples, a line each; nothing if the reward tells good from bad.

    A value that is no number or out of range is missing by then (`scoring.checked_score`).
    """
    found = [f"{r.name}: could not be scored: {r.reason}" for r in results if r.value is None]
    scored = [(r.value, r.name, e.good) for e, r in zip(examples, results, strict=True) if r.value is not None]
    for good in (True, False):
        if not any(example.good is good for example in examples):
            found.append(f"there is no {'good' if good else 'bad'} example, so there is nothing to tell apart")
    worst_good = min(((value, name) for value, name, good in scored if good), default=None)
    best_bad = max(((value, name) for value, name, good in scored if not good), default=None)
    if len(scored) > 1 and len({value for value, _, _ in scored}) == 1:
        found.append(f"every example has the value {scored[0][0]:g}: good and bad look alike to it")
    elif worst_good and best_bad and best_bad[0] >= worst_good[0]:
        found.append(
            f"the bad example {best_bad[1]!r} has {best_bad[0]:g} and the good example {worst_good[1]!r} has "
            f"{worst_good[0]:g}: every bad one must score below every good one"
        )
    return found
