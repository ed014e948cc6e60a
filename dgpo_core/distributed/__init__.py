"""Distributed training: the only package that uses collectives."""
