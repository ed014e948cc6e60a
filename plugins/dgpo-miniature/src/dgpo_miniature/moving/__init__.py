"""The miniature of video: a world of moving shapes, its prompts, its motion reward and a tiny Wan checkpoint."""
