"""One HTML page about a run: read (`data`), put into words (`summary`), drawn (`figures`) and set (`page`)."""
