"""Load, check and distribute prompts."""
