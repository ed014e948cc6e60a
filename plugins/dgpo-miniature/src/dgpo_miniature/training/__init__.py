"""Training of the bundled checkpoints; run it with `python -m dgpo_miniature.train`."""
