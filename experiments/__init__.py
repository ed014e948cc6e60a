"""The paper's experiments and open questions, each by one command: `python -m experiments e1`."""
