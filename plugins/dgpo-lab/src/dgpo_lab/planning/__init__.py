"""Estimate operations, memory, time and cost of a run before any weights are loaded."""
