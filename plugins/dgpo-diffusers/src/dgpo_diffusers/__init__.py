"""The base of backbones that stand on diffusers: checkpoints, loading, adapters, geometry, meta models.

Importing this package imports nothing heavy; take what you need from its modules: `backbone` for the base class,
`layout` for what a checkpoint consists of, `testing` for tiny random checkpoints.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
