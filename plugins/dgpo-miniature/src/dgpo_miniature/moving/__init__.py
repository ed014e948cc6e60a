"""The world of moving shapes: prompts, a motion reward, and the training of a tiny Wan checkpoint."""
