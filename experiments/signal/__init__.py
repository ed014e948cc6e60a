"""Signal to noise of one group's gradient at fixed weights, by `python -m experiments signal`."""
