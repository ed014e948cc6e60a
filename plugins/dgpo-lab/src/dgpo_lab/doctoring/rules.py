"""The doctor's rules as tables: what to measure, when it is a sign of failure, and what to report.

A `Subject` measures values once and tries its rules in order; the first rule that matches becomes the finding. Texts
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
    """The measured values by name. evidence: lines of evidence that all rules of the subject share."""

    evidence: Sequence[str]

    def __getattr__(self, name: str) -> Any:  # for type checkers: each subject defines its own names
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
    """One sign of failure.

    when: the predicate; title, why, evidence (in addition to the subject's) and advice: templates, of which empty
    results are dropped; change: settings to try, the most likely remedy first.
    """

    id: str
    severity: Severity | Callable[[Values], Severity]
    title: str
    why: str
    when: Callable[[Values], bool] = _always
    change: Callable[[Facts, Values], Iterable[Change]] = _nothing
    advice: Sequence[str] | Callable[[Values], Sequence[str]] = ()
    evidence: Sequence[str] = ()

    def found(self, run: Facts, values: Values) -> Finding:
        """Build the finding from values for which `when` is true."""

        def filled(templates: Sequence[str]) -> tuple[str, ...]:
            return tuple(filter(None, (_text.of(template, vars(values)) for template in templates)))

        severity = self.severity(values) if callable(self.severity) else self.severity
        title, why = _text.of(self.title, vars(values)), _text.of(self.why, vars(values))
        evidence = (*values.evidence, *filled(self.evidence))
        advice = self.advice(values) if callable(self.advice) else filled(self.advice)
        return Finding(self.id, severity, title, evidence, why, tuple(self.change(run, values)), advice)


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject of the examination.

    measure: returns the values (several where there are several rewards), a string that says why the subject cannot be
    judged yet, or None if the subject does not apply to the run. fine: the template for runs that match no rule.
    """

    name: str
    measure: Callable[[Facts], Values | Sequence[Values] | str | None]
    fine: str
    rules: Sequence[Rule]

    def examine(self, run: Facts) -> Examination:
        """Apply the rules to the measured values: the first matching rule of each set of values is a finding."""
        measured = self.measure(run)
        if measured is None or isinstance(measured, str):
            return Examination(self.name, open=measured or "")
        each = [measured] if isinstance(measured, Values) else measured
        matches = [(values, next((rule for rule in self.rules if rule.when(values)), None)) for values in each]
        findings = [rule.found(run, values) for values, rule in matches if rule is not None]
        return Examination(self.name, findings, "" if findings else _text.of(self.fine, vars(each[0])))
