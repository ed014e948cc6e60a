"""Checks have names and run one by one; those of a component share what they test, built when the first of them
runs."""

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
    """One promise of a contract.

    `run` raises AssertionError if it is broken, unittest.SkipTest (which pytest knows) where it does not apply, and
    NeedsInput if the component cannot be built with what was given. Any other error is the component's own.
    """

    name: str
    run: Callable[[], None]


def checks_of(subject: Callable[[], Subject], *functions: Callable[[Subject], None]) -> Iterator[Check]:
    """One check a function, called after it: `empty_batch` makes `empty-batch`. The first one only builds.

    Each of them also sees that the process is left as it was, and puts back what is not, so that the next one sees it.
    """
    yield Check("builds", partial(_build, subject))
    for function in functions:
        yield Check(function.__name__.replace("_", "-"), partial(_apply, function, subject))


def run_all(checks: Iterable[Check]) -> None:
    """Run checks in order up to the first broken promise; those that do not apply are passed over."""
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
