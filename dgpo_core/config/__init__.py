"""Load run files and resolve them to configurations."""
