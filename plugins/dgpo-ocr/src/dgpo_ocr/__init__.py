"""Text rendering as a reward for dgpo: an OCR engine reads the image, a rule compares it with the quoted text.

Importing this package imports nothing heavy; take what you need from its modules: `target` for the text that a prompt
asks for, `rule` to judge a recognized text without a run, `engine` for what an OCR engine is.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
