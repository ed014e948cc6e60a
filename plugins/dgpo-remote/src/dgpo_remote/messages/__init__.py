"""What a reward elsewhere and its caller say to each other: media, prompts and scores as single blobs."""
