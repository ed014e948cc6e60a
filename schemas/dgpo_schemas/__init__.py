"""Schemas of every file that people write or read. No torch here: the command line answers at once."""
