"""The command line: a thin layer over the engine, one module per command."""
