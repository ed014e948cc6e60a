"""Run all examinations and order their findings by what to fix first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dgpo_lab.doctoring import convergence, drift, ending, hacking, outputs, preference, rewards, updates
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import SEVERITIES, Examination, Finding, Severity
from dgpo_lab.doctoring.remedies import possible
from dgpo_lab.doctoring.rules import Subject

__all__ = ["SUBJECTS", "Diagnosis", "diagnose"]

SUBJECTS: Sequence[Subject] = (
    ending.ENDING, ending.LOGS,
    rewards.MISSING, rewards.CONSTANT,
    outputs.T_MIN,
    updates.SKIPPED, updates.WEIGHTS,
    preference.SIGMOID,
    convergence.EQUAL, convergence.GROUP_SIZE, convergence.SAMPLER,
    preference.CLIP,
    rewards.DOMINATING,
    drift.DRIFT,
    hacking.MONITORS, hacking.HELDOUT, hacking.DIVERSITY,
    outputs.DISAGREEMENT, outputs.DETAIL,
    convergence.TREND,
    updates.GRADIENTS,
    preference.RESIDUAL,
    convergence.ZERO_WEIGHTS,
    rewards.RANGE, rewards.WAITING,
)  # fmt: skip
"""Causes come before their effects: of two findings of the same severity, fix the earlier one first."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all examinations of a run."""

    run: Facts
    examinations: Sequence[Examination]

    @property
    def findings(self) -> list[Finding]:
        """All findings, the most severe first, causes before effects."""
        findings = [finding for examination in self.examinations for finding in examination.findings]
        return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))

    def count(self, severity: Severity) -> int:
        """Count the findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def diagnose(run: Facts) -> Diagnosis:
    """Examine every subject, and keep only suggested changes that the run file accepts."""
    return Diagnosis(run, [_with_possible_changes(run, subject.examine(run)) for subject in SUBJECTS])


def _with_possible_changes(run: Facts, examination: Examination) -> Examination:
    findings = [replace(finding, changes=possible(run, finding.changes)) for finding in examination.findings]
    return replace(examination, findings=findings)
