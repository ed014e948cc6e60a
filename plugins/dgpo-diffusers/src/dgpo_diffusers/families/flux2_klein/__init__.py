"""FLUX.2 klein (4B and 9B, base and distilled)."""
