"""Text-rendering reward for dgpo: an OCR engine reads the image, and a rule compares the text with the quoted text.

Importing this package imports nothing heavy. Useful modules: `target` extracts the quoted text of a prompt, `rule`
scores a recognized text without a run, and `engine` defines the interface of OCR engines.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
