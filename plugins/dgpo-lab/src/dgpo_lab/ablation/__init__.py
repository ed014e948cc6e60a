"""The implementation of `dgpo ablate`: plan the cells, run them, and compare their results."""
