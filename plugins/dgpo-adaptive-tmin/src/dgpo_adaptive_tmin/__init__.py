"""Timestep policies that change t_min during training.

All policies draw times within [timesteps.t_min, timesteps.t_max] of the run file; set `timesteps.t_min: 0` to allow any
t_min. Importing this package does not import torch.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
