"""Named checks that run one by one. The checks of a component share one instance, built when the first check runs."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from dgpo_kit.contracts._assertions import process_left_alone

__all__ = ["Check", "checks_of", "run_all"]

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Check:
    """A requirement of a contract.

    `run` raises AssertionError if the requirement is violated, unittest.SkipTest (which pytest supports) if it does not
    apply, and NeedsInput if the component cannot be built without more input. Other exceptions come from the component.
    """

    name: str
    run: Callable[[], None]


def checks_of(subject: Callable[[], Subject], *functions: Callable[[Subject], None]) -> Iterator[Check]:
    """Yield a check for each function, named after it: `empty-batch` for `empty_batch`. The first check, `builds`, only
    builds the subject.

    Each check also fails if it changes process state, and restores that state for the next check.
    """
    yield Check("builds", partial(_build, subject))
    for function in functions:
        yield Check(function.__name__.replace("_", "-"), partial(_apply, function, subject))


def run_all(checks: Iterable[Check]) -> None:
    """Run checks in order, skipping those that do not apply. Raises AssertionError at the first violation."""
    for check in checks:
        try:
            check.run()
        except unittest.SkipTest:
            continue


def _build(subject: Callable[[], Subject]) -> None:
    with process_left_alone():
        subject()


def _apply(function: Callable[[Subject], None], subject: Callable[[], Subject]) -> None:
    with process_left_alone():
        function(subject())
