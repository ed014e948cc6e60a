"""Wan 2.1 and 2.2 text-to-video and image-to-video (`i2v`) as backbones of dgpo.

Importing this package imports nothing heavy; take what you need from its modules: `backbone` for the model,
`testing` for a tiny random checkpoint.
"""
