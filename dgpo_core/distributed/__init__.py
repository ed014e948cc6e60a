"""Several processes: the only package with collectives."""
