"""All examinations of a run, and what was found in the order in which to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dgpo_lab.doctoring import convergence, drift, ending, hacking, outputs, preference, rewards, updates
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import SEVERITIES, Examination, Finding, Severity
from dgpo_lab.doctoring.remedies import possible

__all__ = ["EXAMINATIONS", "Diagnosis", "diagnose"]

EXAMINATIONS: Sequence[Callable[[Facts], Examination]] = (
    ending.ending,
    ending.logs,
    rewards.missing,
    rewards.constant,
    outputs.times,
    updates.skipped_updates,
    updates.weights,
    preference.sigmoid,
    convergence.zero_variance,
    convergence.group_size,
    convergence.sampler,
    preference.clipping,
    rewards.dominating,
    drift.drift,
    hacking.guards,
    hacking.heldout,
    hacking.diversity,
    outputs.disagreement,
    outputs.detail,
    convergence.reward_trend,
    updates.gradients,
    preference.residual,
    convergence.zero_weights,
    rewards.saturated,
    rewards.waiting,
)
"""Causes before what they cause: of two findings of one severity the earlier one is mended first."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the examinations of a run said."""

    run: Facts
    examinations: Sequence[Examination]

    @property
    def findings(self) -> list[Finding]:
        """The worst first, causes before what they cause."""
        found = [finding for examination in self.examinations for finding in examination.findings]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def diagnose(run: Facts) -> Diagnosis:
    """Every examination, with those of the suggested changes that the run file allows."""
    return Diagnosis(run, [_with_possible_changes(run, examine(run)) for examine in EXAMINATIONS])


def _with_possible_changes(run: Facts, examination: Examination) -> Examination:
    findings = [replace(finding, changes=possible(run, finding.changes)) for finding in examination.findings]
    return replace(examination, findings=findings)
