"""What `dgpo score` is made of: the reward, the prompts, the batches, the verdicts and the tables."""
