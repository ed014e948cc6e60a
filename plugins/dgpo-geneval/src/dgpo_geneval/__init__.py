"""GenEval rewards for dgpo: a pure evaluator of detections, its three variants, and what a detector is.

Importing this package imports nothing heavy; take what you need from its modules: `detector` for what a detector
implements, `metadata` for the format of prompts, `evaluator` to judge detections without a run.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
