"""Plugin declarations of dgpo-baselines. Do not import torch here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_objectives", "dgpo_samplers"]

dgpo_contract = 3


@hookimpl
def dgpo_samplers() -> Sequence[Component]:
    """Declare the random samplers."""
    return [
        Component(
            "flow-sde",
            "Flow-GRPO's SDE sampler: random steps with the marginals of the flow.",
            "dgpo_baselines.samplers:FlowSde",
            "dgpo_baselines.options:FlowSdeOptions",
        ),
        Component(
            "flow-cps",
            "Coefficients-preserving sampling: random steps without excess noise.",
            "dgpo_baselines.samplers:FlowCps",
            "dgpo_baselines.options:FlowCpsOptions",
        ),
    ]


@hookimpl
def dgpo_objectives() -> Sequence[Component]:
    """Declare the baseline objectives."""
    return [
        Component(
            "flow-grpo",
            "PPO-clipped policy gradient over the random steps of the sampler (arXiv 2505.05470).",
            "dgpo_baselines.flow_grpo:FlowGrpo",
            "dgpo_baselines.options:FlowGrpoOptions",
        ),
        Component(
            "diffusion-dpo",
            "Best against worst sample of each group (arXiv 2311.12908); requires weighting best-vs-worst.",
            "dgpo_baselines.diffusion_dpo:DiffusionDpo",
        ),
        Component(
            "diffusion-nft",
            "Implicit positive and negative policies around the old one (arXiv 2509.16117).",
            "dgpo_baselines.diffusion_nft:DiffusionNft",
            "dgpo_baselines.options:NftOptions",
        ),
        Component(
            "awm",
            "Advantage-weighted flow matching with PPO's clip (arXiv 2509.25050).",
            "dgpo_baselines.awm:AdvantageWeightedMatching",
            "dgpo_baselines.options:AwmOptions",
        ),
        Component(
            "crd",
            "Centered reward distillation: a residual for each member (arXiv 2603.14128).",
            "dgpo_baselines.crd:CenteredRewardDistillation",
            "dgpo_baselines.options:CrdOptions",
        ),
        Component(
            "elbo-pg",
            "Policy gradients on the evidence lower bound: EPG, PEPG, PAR (arXiv 2602.04663).",
            "dgpo_baselines.elbo_pg:ElboPolicyGradient",
            "dgpo_baselines.options:ElboPgOptions",
        ),
        Component(
            "regularized-dgpo",
            "DGPO with a trust region, a KL term at high noise, or self-normalized errors.",
            "dgpo_baselines.regularized_dgpo:RegularizedDgpo",
            "dgpo_baselines.options:RegularizedDgpoOptions",
        ),
    ]
