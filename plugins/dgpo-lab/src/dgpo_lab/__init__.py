"""Analysis of runs: report, doctor, ablations, plans, measurements."""
