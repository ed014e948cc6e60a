"""The world of blocks: 16x16 images whose models train in a few minutes and post-train in seconds, for experiments."""
