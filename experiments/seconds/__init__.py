"""Scores at equal seconds: what each saving is worth on the miniature, by `python -m experiments seconds`."""
