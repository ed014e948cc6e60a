"""Vision-language judges behind OpenAI-compatible servers as rewards of dgpo.

Importing this package imports nothing heavy. Useful modules: `answers` reads the answers of a server, `forms` turns
them into scores, `comparing` combines comparisons, and `demo_server` is a server without a model for trying things out.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
