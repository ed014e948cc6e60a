"""Base classes for backbones on top of diffusers: checkpoints, loading, adapters, geometry, meta models.

Importing this package does not import torch or diffusers. Import from its modules: `backbone` for the base class,
`layout` for the description of a checkpoint, `testing` for tiny random checkpoints.
"""
