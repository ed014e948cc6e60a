"""Measurements of speed: as ratios of one run on the CPU, as shares of the measured ceiling on a GPU."""
