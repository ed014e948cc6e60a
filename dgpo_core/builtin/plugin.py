"""Declarations of the built-in components. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core.hookspecs import Component, hookimpl

__all__ = ["dgpo_objectives", "dgpo_samplers", "dgpo_timestep_policies", "dgpo_weightings"]


def _component(name: str, summary: str, implementation: str, options: str | None = None) -> Component:
    package = "dgpo_core.builtin."
    return Component(name, summary, package + implementation, options and f"{package}options:{options}")


@hookimpl
def dgpo_samplers() -> Sequence[Component]:
    """Declare the deterministic ODE solvers."""
    second = "DPM-Solver++(2M) on flow sigmas: second order, the paper's rollout sampler."
    return [
        _component("flow-euler", "Euler steps of the flow ODE on diffusers' SD3 schedule.", "samplers:FlowEuler"),
        _component("flow-dpmpp", second, "samplers:FlowDPMSolverPP"),
    ]


@hookimpl
def dgpo_weightings() -> Sequence[Component]:
    """Declare the paper's weighting and alternatives."""
    cancels = "the partition function cancels."
    pairwise = "w = 1 for the best and the worst member, 0 elsewhere: pairwise Diffusion-DPO."
    unlike = "w = |A|, larger for good samples that are unlike the others of their group (GARDO, arXiv 2512.24138)."
    spread = f"w = |A|, or 0 in groups whose rewards hardly differ: {cancels}"
    near = "w = |A| for members near the group's mean reward, 0 for the others."
    softmax = f"w = G/2 softmax(|A| / temperature) within each side: {cancels}"
    return [
        _component("abs-advantage", f"w = |A|, the paper's choice: {cancels}", "weightings:AbsAdvantage"),
        _component("uniform", "w = 1 for every member of a group with unequal rewards.", "weightings:Uniform"),
        _component("best-vs-worst", pairwise, "weightings:BestVersusWorst"),
        _component("rank", "w by a member's rank in its group, regardless of reward differences.", "weightings:Rank"),
        _component("softmax", softmax, "weightings:Softmax", "SoftmaxOptions"),
        _component("binary", f"Equal w within each side, equal totals of both sides: {cancels}", "weightings:Binary"),
        _component("top-k", f"w = 1 for the k best and the k worst: {cancels}", "weightings:TopK", "TopKOptions"),
        _component("clipped", "w = min(|A|, limit).", "weightings:Clipped", "ClippedOptions"),
        _component("min-range", spread, "weightings:MinRange", "MinRangeOptions"),
        _component("concentrated", near, "weightings:Concentrated", "ConcentratedOptions"),
        _component("diverse", unlike, "weightings:Diverse"),
    ]


@hookimpl
def dgpo_timestep_policies() -> Sequence[Component]:
    """Declare the continuous and the discrete timestep policy."""
    strata = "One time in each part of [t_min, t_max] of equal probability; the density may grow with sigma."
    steps = "The sampler's own times in [t_min, t_max], drawn without replacement (the authors' rule)."
    flat = "Independent times, uniform in [t_min, t_max]."
    inverse = "Times weighted by the inverse of the model's mean denoising error there, which is measured."
    return [
        _component("uniform", flat, "timesteps:UniformTimesteps", "WeightedOptions"),
        _component("stratified", strata, "timesteps:StratifiedTimesteps", "StratifiedOptions"),
        _component("sampler-steps", steps, "timesteps:SamplerSteps", "WeightedOptions"),
        _component("inverse-dsm", inverse, "inverse_dsm:InverseDsm", "InverseDsmOptions"),
    ]


@hookimpl
def dgpo_objectives() -> Sequence[Component]:
    """Declare the paper's objective."""
    summary = "Direct Group Preference Optimization (arXiv 2510.08425)."
    return [_component("dgpo", summary, "objective:DirectGroupPreference")]
