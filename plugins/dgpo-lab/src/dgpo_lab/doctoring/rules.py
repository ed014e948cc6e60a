"""The doctor's rules as a table: what is measured of a run, when that is a sign, and what is then said.

A `Subject` measures once and has rules in the order in which they are tried; the first that holds is the finding. Texts
are templates over the measured values: `{late}` has three significant digits, `{share:%}` is a percentage.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change, Examination, Finding, Severity, figure, percent

__all__ = ["Rule", "Subject", "Values"]


class Values(SimpleNamespace):
    """What was measured, by name. seen: lines of evidence, the same for every rule."""

    seen: Sequence[str]

    def __getattr__(self, name: str) -> Any:  # for type checkers: names are a subject's own
        raise AttributeError(name)


class _Text(string.Formatter):
    def format_field(self, value: Any, spec: str) -> str:
        if spec == "%":
            return percent(value)
        return figure(value) if isinstance(value, float) and not spec else str(super().format_field(value, spec))

    def of(self, template: str, values: Mapping[str, Any]) -> str:
        return self.vformat(template, (), values)


_text = _Text()


def _always(_: Values) -> bool:
    return True


def _nothing(_run: Facts, _values: Values) -> Iterable[Change]:
    return ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One sign. when: the predicate, tried after the rules before it; title, why, seen (evidence beside the subject's)
    and advice: templates, those that come out empty are left out; change: settings to try, the likeliest first."""

    id: str
    severity: Severity | Callable[[Values], Severity]
    title: str
    why: str
    when: Callable[[Values], bool] = _always
    change: Callable[[Facts, Values], Iterable[Change]] = _nothing
    advice: Sequence[str] | Callable[[Values], Sequence[str]] = ()
    seen: Sequence[str] = ()

    def found(self, run: Facts, values: Values) -> Finding:
        """The finding, where `when` holds."""

        def written(templates: Sequence[str]) -> tuple[str, ...]:
            return tuple(filter(None, (_text.of(template, vars(values)) for template in templates)))

        severity = self.severity(values) if callable(self.severity) else self.severity
        title, why = _text.of(self.title, vars(values)), _text.of(self.why, vars(values))
        evidence = (*values.seen, *written(self.seen))
        advice = self.advice(values) if callable(self.advice) else written(self.advice)
        return Finding(self.id, severity, title, evidence, why, tuple(self.change(run, values)), advice)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at. measure: the values; or why nothing can be said yet; or None where it does not concern the
    run. A measure may give several, as of several rewards. fine: a template, for where no rule holds."""

    name: str
    measure: Callable[[Facts], Values | Sequence[Values] | str | None]
    fine: str
    rules: Sequence[Rule]

    def examine(self, run: Facts) -> Examination:
        """What the first rule that holds says of each; else that it is fine, or unknown."""
        measured = self.measure(run)
        if measured is None or isinstance(measured, str):
            return Examination(self.name, open=measured or "")
        each = [measured] if isinstance(measured, Values) else measured
        holding = [(values, next((rule for rule in self.rules if rule.when(values)), None)) for values in each]
        findings = [rule.found(run, values) for values, rule in holding if rule is not None]
        return Examination(self.name, findings, "" if findings else _text.of(self.fine, vars(each[0])))
