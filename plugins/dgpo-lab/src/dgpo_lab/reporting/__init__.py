"""One HTML page about a run: read the logs (`data`), summarize (`summary`), draw (`figures`), render (`page`)."""
