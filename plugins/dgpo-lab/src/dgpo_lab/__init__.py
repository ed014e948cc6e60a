"""Analysis of runs: report, live page, doctor, ablations, plans, measurements."""
