"""Objectives to compare Direct Group Preference Optimization with, and the random samplers that one of them needs.

Importing this package imports nothing heavy. One module an objective: `flow_grpo`, `diffusion_dpo`, `diffusion_nft`,
`awm`; the samplers are in `samplers`.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
