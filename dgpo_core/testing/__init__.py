"""Help for tests of the engine and of plugins: a toy model that trains in milliseconds.

Importing this package imports nothing heavy; `toy` needs torch.
"""
