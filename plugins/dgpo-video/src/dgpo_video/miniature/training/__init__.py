"""How the shipped checkpoint is made; `python -m dgpo_video.miniature.train` runs it."""
