"""`python -m benchmarks peers`: the loops of other projects beside ours, on the same model and the same work.

Their code is not part of this project: it is read from paths that the user gives, and driven through small adapters.
"""
