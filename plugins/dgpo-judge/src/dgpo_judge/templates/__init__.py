"""The questions of the judges, one text file for each form."""
