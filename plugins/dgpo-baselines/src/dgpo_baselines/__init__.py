"""Baselines for Direct Group Preference Optimization: four objectives, and the random samplers that Flow-GRPO needs.

Importing this package does not import torch. Each objective has its own module (`flow_grpo`, `diffusion_dpo`,
`diffusion_nft`, `awm`); the samplers are in `samplers`.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
