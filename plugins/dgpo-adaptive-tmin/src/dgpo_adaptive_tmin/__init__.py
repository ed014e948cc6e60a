"""Timestep policies that move t_min while training goes on.

Every policy draws within [t_min, t_max] of the run file, whose `timesteps.t_min` is therefore the smallest t_min that
it can choose: set it to 0 to leave the policy free. Importing this package imports nothing heavy.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
