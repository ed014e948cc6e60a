"""Words of the world of moving shapes (does not import torch or numpy)."""

from __future__ import annotations

__all__ = ["COLORS", "DIRECTIONS", "SHAPES"]

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow")
DIRECTIONS = ("left", "right", "up", "down")
