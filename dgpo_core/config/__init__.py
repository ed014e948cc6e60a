"""From files that people write to configurations of a run."""
