"""Statistics of comparisons of runs: curves, times to a target, contrasts with verdicts, numbers of seeds."""
