"""The system below: files that may be anything, signals, threads of OpenMP."""
