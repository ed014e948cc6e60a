"""Stable Diffusion 3 and 3.5 as a backbone of dgpo.

Importing this package does not import torch. The model is in `backbone`; `testing` writes a tiny random checkpoint.
"""
