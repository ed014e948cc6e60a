"""Behind `dgpo ablate`: planning cells, running them, and comparing what they reached."""
