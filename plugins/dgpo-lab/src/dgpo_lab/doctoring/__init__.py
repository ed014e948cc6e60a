"""Behind `dgpo doctor`: a run read once (`facts`), examined sign by sign, and what was found told (`rendering`)."""
