"""GenEval rewards for dgpo: an evaluator of detections with three variants, and the contract of detectors.

Importing this package imports no heavy dependency. Modules: `detector` defines the contract of detectors, `metadata`
the format of prompts; `evaluator` evaluates detections without a run.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
