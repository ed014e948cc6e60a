"""SANA."""
