"""Reference drift: the policy moves further and further away from the reference model."""

from __future__ import annotations

from typing import Literal

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import figure, percent
from dgpo_lab.doctoring.remedies import held
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import CLEAR

__all__ = ["DRIFT"]

FAR = 0.5
"""Ratio of kl to the reference's denoising error above which a policy is far from its reference. The miniatures that
are trained for minutes end at 0.25 to 0.48; the long one, with a quarter of their KL weight, ends at 0.7."""
AS_LARGE = 1.0
"""Ratio at which the distance equals the reference's denoising error."""
UNBOUND = 0.25
"""Ratio that is reported if there is no KL term, or if the distance has doubled since the middle third."""
DOUBLED = 2.0
"""Growth from the middle to the last third that shows no sign of leveling off; the quickstart's is 1.6."""
WORSE = 1.5
"""Ratio of the denoising error to the reference's, on the policy's own samples, at which training away from bad samples
has made the policy worse at denoising good ones. The miniatures stay below 1.25."""


def _drift(run: Facts) -> Values | str:
    """Whether the policy is far from the reference model."""
    section = run.config.objective
    if section.reference == "reset":
        return Values(
            now=0.0, worse=False, unchecked=False, fine="kl measures the distance since the reference was last reset"
        )
    distance = run.series("kl").over(run.series("dsm_reference"))
    if not distance.known:
        return Values(
            now=0.0, worse=False, unchecked=False, fine=f"{section.use} does not measure the distance to the base model"
        )
    if not distance.enough:
        return run.too_few()
    # With a guided reference the distance is not 0 at the start, so only the increase counts.
    start = float(distance.whole.values[0]) if section.kl_cfg > 1 else 0.0
    now, before = distance.late.median - start, distance.middle.median - start
    error = run.series("dsm").over(run.series("dsm_reference"))
    trend = run.series("reward.mean").trend()
    growing = before > 0 and now / before > DOUBLED
    evidence = [distance.late.evidence("kl / dsm_reference: median"), distance.middle.evidence("middle third:")]
    if error.known:
        evidence.append(error.late.evidence("dsm / dsm_reference: median"))
    if trend <= -CLEAR:
        evidence.append(f"the training reward is falling, trend z {trend:+.1f}")
    if run.heldout_fell:
        best, last = run.best, run.target[-1]
        evidence.append(
            f"{best.reward} fell from {figure(best.score.value)} to {figure(last.score.value)} "
            f"(evaluations.jsonl, iterations {best.iteration} and {last.iteration})"
        )
    return Values(
        now=now,
        worse=error.enough and error.late.median > WORSE,
        unchecked=now > UNBOUND and (section.kl == 0 or growing),
        costs=trend <= -CLEAR or run.heldout_fell,
        fine=distance.late.brief("kl / dsm_reference", percent),
        evidence=[*evidence, f"objective.kl is {section.kl:g} (config.yaml)"],
    )


def _severity(v: Values) -> Literal["problem", "warning"]:
    return "problem" if v.now >= AS_LARGE or (v.now > FAR and v.costs) else "warning"


WHY = (
    "Only the KL term keeps the policy close to the reference model. Without it, the reward may rise while qualities "
    "that it does not measure get worse. The DGPO authors' code uses a KL weight of 1e-3 for PickScore and 0.02 for "
    "GenEval and OCR."
)

DRIFT = Subject("drift", _drift, "{fine}", (
    Rule(
        "reference-drift", _severity,
        "The policy denoises its own samples worse than the reference model does.", WHY,
        lambda v: v.worse and v.now <= FAR, held,
    ),
    Rule(
        "reference-drift", _severity,
        "The policy drifts away from the reference model: kl is {now:%} of the reference's denoising error.", WHY,
        lambda v: v.now > FAR or v.worse or v.unchecked, held,
    ),
))  # fmt: skip
