"""Comparison of runs: their last evaluations and their suites in one table."""
