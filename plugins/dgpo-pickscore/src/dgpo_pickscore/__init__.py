"""PickScore, HPS v2.1, ImageReward, CLIPScore, SigLIP score and the aesthetic predictor as rewards of dgpo.

Importing this package imports no heavy dependency. Modules: `rewards`, `hpsv2`, `imagereward` and `siglip` have the
rewards, `images` the preprocessing, `testing` tiny checkpoints with random weights.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
