"""A reward behind servers."""
