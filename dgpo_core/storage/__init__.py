"""The directory of a run: checkpoints, logs, descriptions."""
