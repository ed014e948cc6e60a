"""The command line: a thin face over the engine, one module per command."""
