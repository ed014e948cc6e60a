"""Wan 2.1 and 2.2 text-to-video and image-to-video (`i2v`) as backbones of dgpo.

Importing this package does not import torch. The model is in `backbone`; `testing` writes a tiny random checkpoint.
"""
