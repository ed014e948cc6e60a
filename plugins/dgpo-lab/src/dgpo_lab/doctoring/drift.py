"""Reference drift: a policy that moves away from its reference without bound."""

from __future__ import annotations

from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Examination, Finding, figure, percent
from dgpo_lab.doctoring.remedies import lower_rate, more_kl
from dgpo_lab.doctoring.trends import CLEAR

__all__ = ["drift"]

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


def drift(run: Facts) -> Examination:
    """Whether the policy has left the base model."""
    section = run.config.objective
    distance = run.series("kl").over(run.series("dsm_reference"))
    if not distance.known:
        return Examination("drift", fine=f"{section.use} measures no distance from the base model here")
    if not distance.enough:
        return Examination("drift", open=run.too_few())
    # A guided base is away from the start; what counts is what comes on top.
    start = float(distance.whole.values[0]) if section.kl_cfg > 1 else 0.0
    now, before = distance.late.median - start, distance.middle.median - start
    line = distance.late.said("kl over dsm_reference: median")
    error = run.series("dsm").over(run.series("dsm_reference"))
    worse = error.enough and error.late.median > WORSE
    growing = before > 0 and now / before > DOUBLED
    falling = run.series("reward.mean").trend() <= -CLEAR
    unchecked = now > UNBOUND and (section.kl == 0 or growing)
    if not (now > FAR or unchecked or worse):
        return Examination("drift", fine=distance.late.brief("kl over dsm_reference", percent))
    seen = [line, distance.middle.said("before that")]
    if error.known:
        seen.append(error.late.said("dsm over dsm_reference: median"))
    if falling:
        seen.append(f"the training reward falls, trend z {run.series('reward.mean').trend():+.1f}")
    if run.heldout_fell:
        seen.append(
            f"{run.best.reward} was {figure(run.best.score.value)} and is {figure(run.target[-1].score.value)} "
            f"(evaluations.jsonl, iterations {run.best.iteration} and {run.target[-1].iteration})"
        )
    seen.append(f"objective.kl is {section.kl:g} (config.yaml)")
    title = (
        "The policy denoises worse than its reference, on its own samples."
        if worse and now <= FAR
        else f"The policy drifts from its reference: kl is {percent(now)} of the reference's denoising error."
    )
    finding = Finding(
        "reference-drift",
        "problem" if now >= AS_LARGE or (now > FAR and (falling or run.heldout_fell)) else "warning",
        title,
        seen,
        "Only the KL term holds the policy to the base, and the reward may rise while what it does not look at decays; "
        "the DGPO authors' code has weights of 1e-3 for PickScore and 0.02 for GenEval and OCR.",
        (more_kl(run), lower_rate(run)),
    )
    return Examination("drift", (finding,))
