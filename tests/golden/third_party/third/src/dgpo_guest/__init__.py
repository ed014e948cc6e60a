"""Somebody else's backbone, reward and prompts."""
