"""Stable Diffusion 3 and 3.5 as a backbone of dgpo.

Importing this package imports nothing heavy; take what you need from its modules: `backbone` for the model,
`testing` for a tiny random checkpoint.
"""
