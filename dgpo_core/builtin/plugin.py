"""Declarations of the engine's own parts (light: no torch)."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core.hookspecs import Part, hookimpl

__all__ = ["dgpo_objectives", "dgpo_samplers", "dgpo_timestep_policies", "dgpo_weightings"]


@hookimpl
def dgpo_samplers() -> Sequence[Part]:
    """The two deterministic solvers of the flow."""
    return [
        Part(
            "flow-euler",
            "Euler steps of the flow ODE on diffusers' SD3 schedule.",
            "dgpo_core.builtin.samplers:FlowEuler",
        ),
        Part(
            "flow-dpmpp",
            "DPM-Solver++(2M) on flow sigmas: second order, the paper's rollout sampler.",
            "dgpo_core.builtin.samplers:FlowDPMSolverPP",
        ),
    ]


@hookimpl
def dgpo_weightings() -> Sequence[Part]:
    """The paper's weighting and others to compare with."""
    return [
        Part(
            "abs-advantage",
            "w = |A|, the paper's choice: the partition function cancels.",
            "dgpo_core.builtin.weightings:AbsAdvantage",
        ),
        Part(
            "uniform",
            "w = 1 for every member of a group that has a preference.",
            "dgpo_core.builtin.weightings:Uniform",
        ),
        Part(
            "best-vs-worst",
            "w = 1 for the best and the worst member, 0 elsewhere: pairwise Diffusion-DPO.",
            "dgpo_core.builtin.weightings:BestVersusWorst",
        ),
        Part(
            "rank",
            "w by a member's place in its group, whatever the rewards' distances.",
            "dgpo_core.builtin.weightings:Rank",
        ),
        Part(
            "softmax",
            "w = G/2 softmax(|A| / temperature) within each side: the partition function cancels.",
            "dgpo_core.builtin.weightings:Softmax",
            "dgpo_core.builtin.options:SoftmaxOptions",
        ),
        Part(
            "binary",
            "w equal within each side, both sides the same: the partition function cancels.",
            "dgpo_core.builtin.weightings:Binary",
        ),
        Part(
            "top-k",
            "w = 1 for the k best and the k worst: the partition function cancels.",
            "dgpo_core.builtin.weightings:TopK",
            "dgpo_core.builtin.options:TopKOptions",
        ),
        Part(
            "clipped",
            "w = min(|A|, limit).",
            "dgpo_core.builtin.weightings:Clipped",
            "dgpo_core.builtin.options:ClippedOptions",
        ),
    ]


@hookimpl
def dgpo_timestep_policies() -> Sequence[Part]:
    """Continuous and discrete training times."""
    return [
        Part(
            "uniform",
            "Independent times, uniform in [t_min, t_max].",
            "dgpo_core.builtin.timesteps:UniformTimesteps",
        ),
        Part(
            "sampler-steps",
            "The sampler's own times in [t_min, t_max], drawn without replacement (the authors' rule).",
            "dgpo_core.builtin.timesteps:SamplerSteps",
        ),
    ]


@hookimpl
def dgpo_objectives() -> Sequence[Part]:
    """The paper's loss."""
    return [
        Part(
            "dgpo",
            "Direct Group Preference Optimization (arXiv 2510.08425).",
            "dgpo_core.builtin.objective:DirectGroupPreference",
        )
    ]
