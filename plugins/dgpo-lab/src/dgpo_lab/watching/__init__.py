"""The live page: runs in progress, served over HTTP."""
