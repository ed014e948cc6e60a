"""The Python API, and what the command line does with it: runs that train, sample, evaluate and export."""
