"""Sections of a run file, in the order in which a run uses them. `dgpo_schemas.run` has the whole."""
