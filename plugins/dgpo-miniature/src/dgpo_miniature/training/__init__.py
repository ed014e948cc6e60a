"""How the shipped checkpoint is made; `python -m dgpo_miniature.train` runs it."""
