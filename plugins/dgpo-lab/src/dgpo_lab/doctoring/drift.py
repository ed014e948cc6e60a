"""Reference drift: a policy that moves away from its reference without bound."""

from __future__ import annotations

from typing import Literal

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import figure, percent
from dgpo_lab.doctoring.remedies import held
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_lab.doctoring.trends import CLEAR

__all__ = ["DRIFT"]

FAR = 0.5
"""kl over the reference's denoising error from which a policy is far from its reference. The miniatures that are
trained for minutes end at 0.25 to 0.48, the long one, with a quarter of their KL weight, at 0.7."""
AS_LARGE = 1.0
"""The distance is then as large as the error: the policy has left the model it was."""
UNBOUND = 0.25
"""Distance that is worth a look where there is no KL term, or where it has doubled since the middle third."""
DOUBLED = 2.0
"""Growth from the middle to the last third that shows no sign of an end; the quickstart's is 1.6."""
WORSE = 1.5
"""Denoising error over the reference's, on the policy's own samples: pushing bad samples away has made it worse at
denoising good ones. The miniatures stay below 1.25."""


def _drift(run: Facts) -> Values | str:
    """Whether the policy has left the base model."""
    section = run.config.objective
    distance = run.series("kl").over(run.series("dsm_reference"))
    if not distance.known:
        return Values(
            now=0.0, worse=False, unchecked=False, fine=f"{section.use} measures no distance from the base model here"
        )
    if not distance.enough:
        return run.too_few()
    # A guided base is away from the start; what counts is what comes on top.
    start = float(distance.whole.values[0]) if section.kl_cfg > 1 else 0.0
    now, before = distance.late.median - start, distance.middle.median - start
    error = run.series("dsm").over(run.series("dsm_reference"))
    trend = run.series("reward.mean").trend()
    growing = before > 0 and now / before > DOUBLED
    seen = [distance.late.said("kl over dsm_reference: median"), distance.middle.said("before that")]
    if error.known:
        seen.append(error.late.said("dsm over dsm_reference: median"))
    if trend <= -CLEAR:
        seen.append(f"the training reward falls, trend z {trend:+.1f}")
    if run.heldout_fell:
        best, last = run.best, run.target[-1]
        seen.append(
            f"{best.reward} was {figure(best.score.value)} and is {figure(last.score.value)} "
            f"(evaluations.jsonl, iterations {best.iteration} and {last.iteration})"
        )
    return Values(
        now=now,
        worse=error.enough and error.late.median > WORSE,
        unchecked=now > UNBOUND and (section.kl == 0 or growing),
        costs=trend <= -CLEAR or run.heldout_fell,
        fine=distance.late.brief("kl over dsm_reference", percent),
        seen=[*seen, f"objective.kl is {section.kl:g} (config.yaml)"],
    )


def _severity(v: Values) -> Literal["problem", "warning"]:
    return "problem" if v.now >= AS_LARGE or (v.now > FAR and v.costs) else "warning"


WHY = (
    "Only the KL term holds the policy to the base, and the reward may rise while what it does not look at decays; "
    "the DGPO authors' code has weights of 1e-3 for PickScore and 0.02 for GenEval and OCR."
)

DRIFT = Subject("drift", _drift, "{fine}", (
    Rule(
        "reference-drift", _severity,
        "The policy denoises worse than its reference, on its own samples.", WHY,
        lambda v: v.worse and v.now <= FAR, held,
    ),
    Rule(
        "reference-drift", _severity,
        "The policy drifts from its reference: kl is {now:%} of the reference's denoising error.", WHY,
        lambda v: v.now > FAR or v.worse or v.unchecked, held,
    ),
))  # fmt: skip
