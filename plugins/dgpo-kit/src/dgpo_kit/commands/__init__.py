"""Commands for plugin authors."""
