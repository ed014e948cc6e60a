"""Schemas of all files that users write or read. It does not import torch, to keep the command line fast."""
