"""The version of dgpo, equal to that in pyproject.toml."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
