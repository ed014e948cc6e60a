"""Commands of dgpo-geneval."""
