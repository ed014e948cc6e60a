"""The implementation of `dgpo score`: find the reward, files and prompts, score batches, print and annotate results."""
