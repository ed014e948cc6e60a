"""`python -m benchmarks gpu`: one session on a GPU, in nine minutes, step by step."""
