"""The implementation of `dgpo doctor`: read a run (`facts`), examine it by rules, print the findings (`rendering`)."""
