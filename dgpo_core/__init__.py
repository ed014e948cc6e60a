"""The engine of dgpo and the contracts of its plugins.

Importing this package imports nothing heavy; take what you need from its modules:
`types` and `contracts` for what plugins implement, `hookspecs` for how they are found.
"""

from __future__ import annotations

__all__ = ["__version__", "hookimpl"]

from dgpo_core.hookspecs import hookimpl

__version__ = "0.2.0"
