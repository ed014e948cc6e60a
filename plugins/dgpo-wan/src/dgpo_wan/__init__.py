"""Wan 2.1 and 2.2 text-to-video as a backbone of dgpo.

Importing this package does not import torch. The model is in `backbone`; `testing` writes a tiny random checkpoint.
"""
