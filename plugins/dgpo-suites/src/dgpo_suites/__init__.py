"""Benchmarks of text-to-image models as suites of dgpo: GenEval 2, DPG-Bench, DrawBench, PartiPrompts, LongText-Bench.

Importing this package imports nothing heavy. The prompt files are the user's: none of them is part of this package.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
