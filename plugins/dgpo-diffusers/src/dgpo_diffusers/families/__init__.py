"""Families of diffusers models, one package each: backbone, options, layer names, tiny checkpoint."""
