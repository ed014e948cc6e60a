"""PickScore, CLIPScore and the LAION aesthetic predictor as rewards of dgpo.

Importing this package imports no heavy dependency. Modules: `rewards` has the three rewards, `images` the
preprocessing, `testing` tiny checkpoints with random weights.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
