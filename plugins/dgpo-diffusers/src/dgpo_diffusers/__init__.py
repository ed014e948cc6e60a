"""The base of backbones that stand on diffusers: checkpoints, loading, adapters, geometry, meta models.

Importing this package imports nothing heavy; take what you need from its modules: `backbone` for the base class,
`layout` for what a checkpoint consists of, `testing` for tiny random checkpoints.
"""
