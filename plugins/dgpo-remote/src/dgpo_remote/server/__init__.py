"""`dgpo serve`: a reward behind HTTP."""
