"""Baselines for Direct Group Preference Optimization: objectives, and the random samplers that Flow-GRPO needs.

Importing this package does not import torch. Each objective has its own module (`flow_grpo`, `diffusion_dpo`,
`diffusion_nft`, `awm`, `crd`, `elbo_pg`, and `regularized_dgpo`, which is DGPO with regularizers of other methods); the
samplers are in `samplers`.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
