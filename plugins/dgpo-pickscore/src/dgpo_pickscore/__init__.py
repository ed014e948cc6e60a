"""PickScore, CLIPScore and the LAION aesthetic predictor as rewards of dgpo.

Importing this package imports nothing heavy; take what you need from its modules: `rewards` for the three rewards,
`images` for how images reach a network, `testing` for tiny random checkpoints.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
